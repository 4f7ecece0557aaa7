"""The lock file: one form, and each broken rule named by its entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import RecipeError
from pipelines.evidence import evidence_path
from pipelines.lock import Lock, load_lock
from pipelines.recipe import SourceKernel, load_recipe
from pipelines.tools import TOOLS_LOCK, load_tools

PROJECT = Path(__file__).parents[2]
RECIPES = ("quick", "debian-minimal")


def _file(
    name: str, version: str = "1.0-1", arch: str = "amd64", sets: tuple[str, ...] = ("root",)
) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "arch": arch,
        "sha256": "ab" * 32,
        "size": 10,
        "pool_path": f"pool/main/{name[0]}/{name}/{name}_{version}_{arch}.deb",
        "sets": list(sets),
    }


def _lock(*packages: dict[str, Any], sources: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        "schema": 1,
        "suite": "trixie",
        "arch": "amd64",
        "requested": {"root": [package["name"] for package in packages]},
        "packages": list(packages),
        "sources": list(sources),
    }


def test_a_lock_has_one_form_whatever_order_it_was_made_in() -> None:
    files = [_file("libb"), _file("liba", "2"), _file("liba", "10"), _file("liba", "2", "all")]
    forms = {
        Lock.model_validate(_lock(*order)).to_bytes()
        for order in (files, files[::-1], files[2:] + files[:2])
    }
    (form,) = forms
    assert [(one["name"], one["version"], one["arch"]) for one in json.loads(form)["packages"]] == [
        ("liba", "10", "amd64"),
        ("liba", "2", "all"),
        ("liba", "2", "amd64"),
        ("libb", "1.0-1", "amd64"),
    ]
    assert form.endswith(b"}\n")
    assert form.startswith(b'{\n  "schema": 1,\n')


def test_a_set_is_packages_and_sources() -> None:
    lock = Lock.model_validate(
        _lock(
            _file("liba"), _file("libb", sets=("kernel", "root")), sources=(_file("libs", sets=("kernel",)),)
        )
    )
    assert [file.name for file in lock.of_set("kernel")] == ["libb", "libs"]
    assert lock.sets() == ("kernel", "root")


BROKEN = {
    "a pool path out of the pool": ("pool_path", "pool/../../etc/passwd"),
    "an absolute pool path": ("pool_path", "/etc/passwd"),
    "a hidden pool path": ("pool_path", "pool/main/.x"),
    "an empty step in the pool path": ("pool_path", "pool//main"),
    "a URL for a pool path": ("pool_path", "http://a.example/pool/x.deb"),
    "a name that is a path": ("name", "../x"),
    "a digest cut short": ("sha256", "ab" * 31),
    "a digest in capitals": ("sha256", "AB" * 32),
    "an empty file": ("size", 0),
    "a size that is a word": ("size", "ten"),
    "a version with a slash": ("version", "1/2"),
    "an unknown field": ("url", "http://a.example"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_entry_is_named_with_its_field_and_what_was_found(case: str, tmp_path: Path) -> None:
    field, value = BROKEN[case]
    path = tmp_path / "lock.json"
    path.write_text(json.dumps(_lock(_file("liba"), _file("libb") | {field: value})))
    with pytest.raises(RecipeError) as told:
        load_lock(path, "disk-image lock r")
    assert told.value.what.startswith(f"{path}: packages.1.{field}: ")
    assert str(value)[:20] in told.value.what
    assert told.value.hint == "disk-image lock r"


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text(json.dumps(_lock() | {"schema": 2}))
    with pytest.raises(RecipeError, match="schema: Input should be less than or equal to 1"):
        load_lock(path, "disk-image lock r")


def test_a_missing_lock_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no lock") as told:
        load_lock(tmp_path / "lock.json", "disk-image lock r")
    assert told.value.hint == "disk-image lock r"


def test_a_lock_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.write_text("{")
    with pytest.raises(RecipeError, match=r"lock\.json: lock: Invalid JSON"):
        load_lock(path, "disk-image lock r")


def _committed() -> dict[str, Path]:
    return {name: PROJECT / "recipes" / name / "lock.json" for name in RECIPES} | {"tools": TOOLS_LOCK}


@pytest.mark.parametrize("name", [*RECIPES, "tools"])
def test_the_committed_locks_are_in_their_one_form_and_have_evidence(name: str) -> None:
    path = _committed()[name]
    lock = load_lock(path, "disk-image lock")
    assert lock.to_bytes() == path.read_bytes()
    evidence = json.loads(evidence_path(path).read_text())
    assert {f"{lock.suite}{rest}" for rest in ("", "-updates", "-security")} <= {
        one["suite"] for one in evidence["suites"]
    }
    assert all(one["signed_by"] for one in evidence["suites"])
    for data in (path.read_bytes(), evidence_path(path).read_bytes()):
        assert b"://" not in data


@pytest.mark.parametrize("name", RECIPES)
def test_a_committed_lock_was_made_for_its_recipe_as_it_is(name: str) -> None:
    recipe = load_recipe(PROJECT / "recipes" / name)
    lock = load_lock(_committed()[name], "disk-image lock")
    kernel = recipe.kernel.source if isinstance(recipe.kernel, SourceKernel) else recipe.kernel.package
    assert lock.requested == {"kernel": (kernel,), "root": tuple(sorted(recipe.packages))}
    assert lock.sets() == ("initramfs", "kernel", "root")
    root = {file.name for file in lock.of_set("root")}
    assert set(recipe.packages) <= root
    assert "apt" not in root
    assert len(lock.of_set("kernel")) == 1


def test_the_tools_lock_was_made_for_the_tools_as_they_are() -> None:
    tools, lock = load_tools(), load_lock(TOOLS_LOCK, "disk-image lock --tools")
    assert lock.sets() == tuple(sorted(tools.sets))
    for name, members in tools.sets.items():
        asked = {*tools.base.packages, *members.of(lock.arch)}
        assert set(lock.requested[name]) == asked
        assert asked <= {file.name for file in lock.of_set(name)}


def test_of_the_extra_suite_the_tools_have_composefs_alone() -> None:
    lock = load_lock(TOOLS_LOCK, "disk-image lock --tools")
    versions = {file.name: file.version for file in lock.of_set("image")}
    assert versions["composefs"] == versions["libcomposefs1"]
    assert versions["libc6"].startswith("2.41-"), "the libc of another suite than trixie"
    assert versions["python3"].startswith("3.13."), "the python of another suite than trixie"
