"""The reference pages are what the code says, and the commands in the documentation exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from itertools import takewhile
from pathlib import Path
from types import ModuleType

import pytest

from pipelines.cli import parser
from platform_server.action_table import ACTIONS, read_params

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
)


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """scripts/reference.py."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_pages_are_generated_from_this_code(reference: ModuleType) -> None:
    for page, render in reference.PAGES.items():
        written = (ROOT / "docs" / "reference" / page).read_text()
        if page == "command-line.md" and sys.version_info >= (3, 12):
            # later versions of Python break the lines of a verb's help in other places
            assert written.split() == render().split(), f"{page}: run make docs with Python 3.11"
        else:
            assert written == render(), f"{page}: run make docs"


def test_every_example_of_an_action_is_one_that_it_takes(reference: ModuleType) -> None:
    for action in ACTIONS.values():
        read_params(action, reference.example_of(action))


def words(line: str) -> list[str]:
    """A command's words, up to what the shell does with it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(takewhile(lambda word: not word or not set(word) <= set("<>|&;"), lexer))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_shown_is_one_the_parser_takes(page: str) -> None:
    for block in re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.S):
        for line in re.findall(r"^\$ (?:\.venv/bin/)?disk-image (.*)$", block, re.M):
            parser().parse_args(words(line))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"
