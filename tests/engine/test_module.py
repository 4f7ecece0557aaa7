"""The Dagger module as `dagger` sees it: its functions, their help, its checks and one failure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from pipelines.dagger_engine import BASE
from tests.engine.module_copy import LOADING, TEST_BASE, dagger

pytestmark = [pytest.mark.engine, pytest.mark.timeout(LOADING)]


def test_functions(module: Path, snapshot: SnapshotAssertion) -> None:
    assert dagger(module, "functions") == snapshot


@pytest.mark.parametrize("function", [
        "build", "boot", "lock", "shell", "explain", "kernel",
        "sbom", "sign", "push", "publish", "verify",
    ],
)  # fmt: skip
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
