"""The build record: what the definition holds, when the file is written, what one run says of itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from pipelines.build_definition import planned
from pipelines.build_record import Run, definition, write_build_record
from pipelines.commands.request import Request
from pipelines.definition import Json
from pipelines.lock import Lock
from pipelines.plan import plan
from pipelines.recipe import load_recipe
from pipelines.sources import PROJECT, Sources
from supply_chain.provenance import BuildRecord

RECIPES = PROJECT / "recipes"
IMAGE = f"sha256:{'ab' * 32}"
COMMIT = "1f" * 20


def _locked(name: str, version: str, arch: str, *sets: str) -> dict[str, Any]:
    digest = name.encode().hex().ljust(64, "0")[:64]
    path = f"pool/main/x/{name}_{arch}.deb"
    content = {"sha256": digest, "size": 1, "pool_path": path}
    return {"name": name, "version": version, "arch": arch, "sets": sets, **content}


def _lock(*packages: dict[str, Any]) -> Lock:
    fields = {"schema": 1, "suite": "trixie", "arch": "amd64", "requested": {}, "packages": packages}
    return Lock.model_validate(fields)


def _request(name: str) -> Request:
    """A recipe of the project under small locks, so that relocking does not change the golden."""
    recipe = load_recipe(RECIPES / name)
    lock = _lock(
        _locked("libstdc++6", "1:14.2.0~rc1+b2", "amd64", "root", "initramfs"),
        _locked("linux-source-6.12", "6.12.1-1", "all", "kernel"),
    )
    tools = _lock(
        _locked("libstdc++6", "1:14.2.0~rc1+b2", "amd64", "image", "boot"),
        _locked("gcc", "4:14", "amd64", "kernel"),
        _locked("qemu", "1:10", "amd64", "boot"),
    )
    made = plan(recipe, lock, tools)
    documents = {"recipe:recipe.toml": b"recipe", "lock": b"lock", "tools-lock": b"tools"}
    found = planned(recipe, lock, tools, made, documents)
    folder = RECIPES / name
    return Request(folder, folder, folder, made, found, Sources(recipe=folder))


@pytest.mark.parametrize("name", ["quick", "debian-minimal"])
def test_the_definition(name: str, snapshot: SnapshotAssertion) -> None:
    found: Any = definition(_request(name), COMMIT)
    for each in found["resolvedDependencies"]:
        if each.get("name") in ("plan", "programs"):
            each["digest"] = {"sha256": "varies"}
    assert json.dumps(found, indent=1) == snapshot


def test_a_recipe_file_a_program_and_the_commit_change_it(tmp_path: Path) -> None:
    request = _request("quick")
    first = definition(request, None)
    assert first == definition(_request("quick"), None)
    assert first != definition(request, COMMIT)
    (tmp_path / "motd").write_text("another")
    other = Request(tmp_path, tmp_path, tmp_path, request.plan, request.definition, Sources(recipe=tmp_path))
    names = {name for name, digest in _named(definition(other, None)) ^ _named(first)}
    assert names == {"recipe:motd"}
    other.sources._hashed[PROJECT / "stages/shared/job.py"] = "00" * 32
    names = {name for name, digest in _named(definition(other, None)) ^ _named(first)}
    assert names == {"recipe:motd", "programs"}


def _named(found: dict[str, Json]) -> set[tuple[str, str]]:
    dependencies: Any = found["resolvedDependencies"]
    return {(each["name"], each["digest"]["sha256"]) for each in dependencies if "name" in each}


def _write(path: Path, image: str = IMAGE, commit: str | None = None, run: Run | None = None) -> BuildRecord:
    write_build_record(path, image, definition(_request("quick"), commit), run or Run("local"))
    return BuildRecord.model_validate(json.loads(path.read_bytes()))


def test_the_record_of_the_same_build_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "layout.build.json"
    first = _write(path)
    assert path.read_bytes() == first.to_bytes()
    assert _write(path) == first
    assert _write(path, run=Run("dagger v1", base="python:3")) == first


@pytest.mark.parametrize("before", [b"", b"[]", b"{}", b"\xff", b"[" * 99_999, b'{"image": null}'])
def test_what_is_no_record_is_replaced(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "layout.build.json"
    path.write_bytes(before)
    assert _write(path).image == IMAGE


def test_another_image_or_definition_gets_a_new_record(tmp_path: Path) -> None:
    path = tmp_path / "layout.build.json"
    first = _write(path)
    other = _write(path, image=f"sha256:{'cd' * 32}")
    assert other.image != first.image
    assert other.run_details.metadata.invocation_id != first.run_details.metadata.invocation_id
    assert _write(path, commit=COMMIT).build_definition.git_sha == COMMIT
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_executors_differ_in_run_details_alone(tmp_path: Path) -> None:
    local = _write(tmp_path / "a.build.json")
    base = f"python:3.14@sha256:{'ef' * 32}"
    dagger = _write(tmp_path / "b.build.json", run=Run("dagger v0.21.8", base=base))
    assert local.build_definition == dagger.build_definition
    assert local.run_details.builder.version["executor"] == "local"
    assert dagger.run_details.builder.version["executor"] == "dagger v0.21.8"
    (image,) = dagger.run_details.builder.builder_dependencies or ()
    assert image.uri == "docker-image://python:3.14"
    assert image.digest is not None
    assert image.digest.sha256 == "ef" * 32


def test_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("GITHUB_SERVER_URL", "https://git.example/"),
        ("GITHUB_REPOSITORY", "os/images"),
        ("GITHUB_RUN_ID", "17"),
        ("GITHUB_RUN_ATTEMPT", "2"),
    ):
        monkeypatch.setenv(name, value)
    found = _write(tmp_path / "a.build.json", run=Run("local", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))
    metadata = found.run_details.metadata
    assert metadata.invocation_id == "https://git.example/os/images/actions/runs/17/attempts/2"
    assert metadata.started_on == "2026-01-02T03:04:05Z"
    assert metadata.finished_on > metadata.started_on
