"""The table of the reference's cases: every number once, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]*) \|$", re.M)
ROWS = ROW.findall((ROOT / "docs/reference/reference-cases.md").read_text())
NUMBERS = [*range(1, 99), *range(132, 137)]


@cache
def _tests_in(path: Path) -> frozenset[str]:
    """The names of a file's tests."""
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_case_is_there_once() -> None:
    assert [int(number) for number, *_ in ROWS] == NUMBERS


@pytest.mark.parametrize(("number", "what", "here", "otherwise"), ROWS, ids=[row[0] for row in ROWS])
def test_every_case_has_its_tests_or_a_reason(number: str, what: str, here: str, otherwise: str) -> None:
    if here.strip() == "—":
        assert otherwise.startswith("Does not apply: ")
        return
    for name in here.split(", "):
        path, _, test = name.strip("`").partition("::")
        assert test in _tests_in(ROOT / "tests" / path), name
