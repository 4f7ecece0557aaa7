"""The Dagger module as `dagger` sees it: its functions, their help, its checks and one failure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from pipelines.dagger_engine import BASE
from pipelines.sources import PROJECT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

ROOMS = ("pipelines", "stages", "initramfs", "supply_chain", "platform_client", "platform_server", "recipes")
FILES = ("dagger.json", "pyproject.toml", "uv.lock", "README.md", "LICENSE")
TEST_BASE = os.environ.get("DISK_IMAGE_TEST_BASE")


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the module, whose Python runs in the test's base image where one is named."""
    folder = tmp_path_factory.mktemp("module")
    for room in ROOMS:
        shutil.copytree(PROJECT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copyfile(PROJECT / file, folder / file)
    if TEST_BASE:
        with (folder / "pyproject.toml").open("a") as stream:
            stream.write(f'\n[tool.dagger]\nbase-image = "{TEST_BASE}"\n')
    return folder


def dagger(module: Path, *words: str, code: int = 0) -> str:
    """What the CLI prints, without colours; for a failure, what it says."""
    cli = os.environ.get("_EXPERIMENTAL_DAGGER_CLI_BIN") or "dagger"
    done = subprocess.run([cli, "-s", *words], cwd=module, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout if code == 0 else done.stderr)


def test_functions(module: Path, snapshot: SnapshotAssertion) -> None:
    assert dagger(module, "functions") == snapshot


@pytest.mark.parametrize("function", ["build", "boot", "lock", "shell", "explain", "kernel"])
def test_help(module: Path, function: str, snapshot: SnapshotAssertion) -> None:
    told = dagger(module, "call", function, "--help")
    # What the CLI says itself about types and options is Dagger's, not ours.
    ours = [
        part for part in re.split(r"\n\n(?=[A-Z ]+\n)", told) if part.startswith(("ARGUMENTS", function))
    ]
    assert [told.strip().split("\n\n")[0], *ours] == snapshot


def test_checks(module: Path) -> None:
    assert re.search(r"recipes\s+Check that every recipe", dagger(module, "check", "-l"))
    dagger(module, "check", "recipes")


def test_a_failure_is_in_words(module: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "recipe.toml").write_text('platform_slug = "x"\n')
    base = ("--base", TEST_BASE or BASE)
    said = dagger(module, "call", *base, "plan", "--recipe", str(tmp_path / "recipe"), code=1)
    assert "recipe.toml" in said
    assert "to do:" in said
    assert "Traceback" not in said
    assert "GraphQL" not in said
