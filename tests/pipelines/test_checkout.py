"""Which commit a build claims: the caller's, the forge's, or that of a checkout that is as committed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.checkout import git_sha
from pipelines.errors import UsageError

ONE, OTHER = "1a" * 20, "2b" * 20


def _git(folder: Path, *argv: str) -> str:
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {
        **os.environ,
        **identity,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
    }
    done = subprocess.run(
        ["git", *argv], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe in a checkout, all of it committed."""
    folder = tmp_path / "project" / "recipes" / "small"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text("x")
    (folder / "lock.json").write_text("{}")
    (tmp_path / "project" / "tools.lock").write_text("{}")
    (tmp_path / "project" / "stage.py").write_text("pass")
    _git(tmp_path / "project", "init", "--quiet")
    _git(tmp_path / "project", "add", ".")
    _git(tmp_path / "project", "commit", "--quiet", "--message", "one")
    return folder


def _claimed(recipe: Path, lock: Path | None = None) -> str | None:
    project = recipe.parents[1]
    files = [*sorted(recipe.iterdir()), project / "tools.lock"]
    return git_sha(None, recipe, [*files, lock] if lock else files, [project / "stage.py"], {})


def test_a_clean_checkout(recipe: Path) -> None:
    assert _claimed(recipe) == _git(recipe, "rev-parse", "HEAD")


def test_what_the_build_does_not_read_may_be_new(recipe: Path) -> None:
    (recipe.parents[1] / "out").mkdir()
    (recipe.parents[1] / "out" / "layout").write_text("x")
    (recipe.parent / "another.toml").write_text("x")
    assert _claimed(recipe) is not None


def _change_a_file(recipe: Path) -> None:
    (recipe / "recipe.toml").write_text("changed")


def _stage_a_change(recipe: Path) -> None:
    _change_a_file(recipe)
    _git(recipe, "add", ".")


def _add_a_file(recipe: Path) -> None:
    (recipe / "motd").write_text("new")


def _change_a_program(recipe: Path) -> None:
    (recipe.parents[1] / "stage.py").write_text("changed")


def _add_a_program(recipe: Path) -> None:
    _git(recipe.parents[1], "rm", "--quiet", "--cached", "stage.py")
    _git(recipe, "commit", "--quiet", "--message", "two")


def _move_the_recipe(recipe: Path) -> None:
    _git(recipe, "rm", "--quiet", "--cached", "-r", ".")


@pytest.mark.parametrize(
    "change",
    [_change_a_file, _stage_a_change, _add_a_file, _change_a_program, _add_a_program, _move_the_recipe],
)
def test_a_dirty_checkout_is_not_claimed(recipe: Path, change: Callable[[Path], None]) -> None:
    change(recipe)
    assert _claimed(recipe) is None


def test_a_lock_from_elsewhere_is_not_claimed(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text("{}")
    assert _claimed(recipe, tmp_path / "lock.json") is None


def test_an_ignored_recipe_is_not_the_commits(recipe: Path) -> None:
    new = recipe.with_name("ignored")
    new.mkdir()
    (new / "lock.json").write_text("{}")
    (recipe.parents[1] / ".git" / "info" / "exclude").write_text("ignored\n")
    assert _claimed(new) is None


def test_no_checkout_no_commit(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    assert git_sha(None, folder, (), (), {}) is None


def test_a_checkout_without_commits(tmp_path: Path) -> None:
    _git(tmp_path, "init", "--quiet")
    assert git_sha(None, tmp_path, (), (), {}) is None


def test_a_hooks_variables_lead_nowhere_else(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = _git(recipe, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert _claimed(recipe) == head


def test_the_caller_comes_before_the_forge_and_the_forge_before_the_checkout(recipe: Path) -> None:
    forge = {"GITHUB_SHA": ONE}
    assert git_sha(OTHER, recipe, (), (), forge) == OTHER
    assert git_sha(None, recipe, (), (), forge) == ONE
    assert git_sha(None, recipe, (), (), {"GITEA_SHA": "3c" * 32}) == "3c" * 32


@pytest.mark.parametrize("text", ["main", "1a2b3c4", ONE.upper(), f"{ONE}\n", "g" * 40])
def test_what_is_no_full_name_is_refused(recipe: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"--git-sha: expected 40 or 64 hex digits"):
        git_sha(text, recipe, (), (), {})
    with pytest.raises(UsageError, match=r"GITHUB_SHA: expected"):
        git_sha(None, recipe, (), (), {"GITHUB_SHA": text})
