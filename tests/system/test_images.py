"""The two recipes, from their committed locks to a guest whose kernel has verified its root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.command import ROOT, Built, build, disk_image

pytestmark = [pytest.mark.sandbox, pytest.mark.network, pytest.mark.timeout(3000)]


def _boots(image: Built, store: Path, console: Path) -> None:
    done = disk_image("boot", image.layout, "--store", store, "--json", "--console", console)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["composefs_digest"] == image.composefs_digest
    assert f"disk-image: root verified {image.composefs_digest}" in console.read_text(errors="replace")
    assert "multi-user.target" in console.read_text(errors="replace")


@pytest.mark.boot
def test_quick_boots_from_a_verified_root(quick: Built, warm_store: Path, tmp_path: Path) -> None:
    _boots(quick, warm_store, tmp_path / "console")


@pytest.mark.boot
@pytest.mark.kernel
def test_debian_minimal_boots_its_own_kernel_from_a_verified_root(
    minimal: Built, warm_store: Path, tmp_path: Path
) -> None:
    _boots(minimal, warm_store, tmp_path / "console")


@pytest.mark.kernel
def test_a_comment_in_a_kernel_fragment_runs_the_kernel_and_nothing_after_it(
    minimal: Built, warm_store: Path, tmp_path: Path
) -> None:
    import shutil

    recipe = tmp_path / "debian-minimal"
    shutil.copytree(ROOT / "recipes" / "debian-minimal", recipe)
    fragment = sorted((recipe / "kernel").glob("*.config"))[0]
    fragment.write_text(fragment.read_text() + "\n# A comment changes no option.\n")
    again = build(
        recipe, tmp_path / "layout", warm_store, "--lock", minimal.lock, "--tools-lock", minimal.tools_lock
    )
    assert again.ran == ["kernel"]
    assert again.manifest_digest == minimal.manifest_digest
