"""What runs again after a change, and what must not: one changed input at a time, on a copy of the quick
recipe.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from uuid import uuid4

import pytest

from supply_chain.beside import build_record_path, sbom_path
from tests.system.command import ROOT, Built, build, disk_image

pytestmark = [pytest.mark.sandbox, pytest.mark.network, pytest.mark.timeout(1800)]


@pytest.fixture
def recipe(quick: Built, tmp_path: Path) -> Path:
    """A copy of the quick recipe, with one file in its root and one in its initramfs, under the locks
    `quick` was built with.
    """
    folder = tmp_path / "quick"
    shutil.copytree(ROOT / "recipes" / "quick", folder)
    shutil.copy(quick.lock, folder / "lock.json")
    (folder / "in-root").write_text(_unseen())
    (folder / "in-initramfs").write_text(_unseen())
    with (folder / "recipe.toml").open("a") as toml:
        toml.write('\n[[files]]\npath = "/etc/changed-by-the-test"\nsource = "in-root"\n')
        toml.write('\n[[initramfs.files]]\npath = "/etc/changed-by-the-test"\nsource = "in-initramfs"\n')
    return folder


def _unseen() -> str:
    """Content that no earlier run with this store had."""
    return f"{uuid4()}\n"


def _build(recipe: Path, quick: Built, store: Path, tmp_path: Path) -> Built:
    return build(recipe, tmp_path / "layout", store, "--tools-lock", quick.tools_lock)


def test_nothing_changed_runs_nothing(recipe: Path, quick: Built, warm_store: Path, tmp_path: Path) -> None:
    first = _build(recipe, quick, warm_store, tmp_path)
    second = _build(recipe, quick, warm_store, tmp_path)
    assert second.ran == []
    assert second.manifest_digest == first.manifest_digest


def test_documents_that_tell_of_the_image_are_left_alone(
    recipe: Path, quick: Built, warm_store: Path, tmp_path: Path
) -> None:
    image = _build(recipe, quick, warm_store, tmp_path)
    paths = (sbom_path(image.layout), build_record_path(image.layout))
    before = [(path.read_bytes(), path.stat().st_ino) for path in paths]
    _build(recipe, quick, warm_store, tmp_path)
    assert [(path.read_bytes(), path.stat().st_ino) for path in paths] == before
    for path in paths:
        path.unlink()
    _build(recipe, quick, warm_store, tmp_path)
    assert paths[0].read_bytes() == before[0][0]
    assert json.loads(paths[1].read_bytes())["buildDefinition"] == image.definition["buildDefinition"]


def test_a_changed_root_file_runs_only_rootfs_and_what_follows(
    recipe: Path, quick: Built, warm_store: Path, tmp_path: Path
) -> None:
    first = _build(recipe, quick, warm_store, tmp_path)
    (recipe / "in-root").write_text(_unseen())
    second = _build(recipe, quick, warm_store, tmp_path)
    assert second.ran == ["rootfs", "composefs", "image", "sbom"]
    assert second.manifest_digest != first.manifest_digest
    assert second.composefs_digest != first.composefs_digest


def test_a_changed_initramfs_file_leaves_kernel_rootfs_and_composefs_alone(
    recipe: Path, quick: Built, warm_store: Path, tmp_path: Path
) -> None:
    first = _build(recipe, quick, warm_store, tmp_path)
    (recipe / "in-initramfs").write_text(_unseen())
    second = _build(recipe, quick, warm_store, tmp_path)
    assert second.ran == ["initramfs", "image", "sbom"]
    assert second.composefs_digest == first.composefs_digest
    assert second.manifest_digest != first.manifest_digest


def test_explain_names_the_file_that_changed(
    recipe: Path, quick: Built, warm_store: Path, tmp_path: Path
) -> None:
    _build(recipe, quick, warm_store, tmp_path)
    (recipe / "in-initramfs").write_text(_unseen())
    told = disk_image("explain", recipe, "--store", warm_store, "--tools-lock", quick.tools_lock)
    assert told.returncode == 0, told.stderr
    lines = [line for line in told.stdout.splitlines() if line.startswith("initramfs")]
    assert len(lines) == 1, told.stdout
    assert "file-0000" in lines[0]
    assert "changed from" in lines[0]


def test_another_tools_lock_that_yields_the_same_bytes_gives_the_same_image(
    recipe: Path, quick: Built, warm_store: Path, tmp_path: Path
) -> None:
    """A package that no stage of the image uses joins a tools set: other tools tree, other keys, equal
    output.
    """
    (recipe / "in-root").write_text(_unseen())
    first = _build(recipe, quick, warm_store, tmp_path)
    sbom, definition = first.sbom, first.definition
    lock = json.loads(quick.tools_lock.read_text())
    only_kernel = next(p for p in lock["packages"] if p["name"] == "bc" and "image" not in p["sets"])
    only_kernel["sets"] = sorted({*only_kernel["sets"], "image"})
    other = tmp_path / "tools.lock"
    other.write_text(json.dumps(lock))
    second = build(recipe, tmp_path / "layout", warm_store, "--tools-lock", other)
    assert "rootfs" in second.ran
    assert second.manifest_digest == first.manifest_digest
    # Equal output stops the work: packages has a tools set of its own and did not run.
    assert "packages" not in second.ran
    # What the image was built with is no part of it, but of what is said about it.
    assert second.sbom != sbom
    assert second.definition != definition
