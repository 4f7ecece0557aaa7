"""Two executors, one image: the manifest digest from a Dagger engine equals the local executor's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.sources import PROJECT
from supply_chain.beside import sbom_path

pytestmark = [pytest.mark.engine, pytest.mark.sandbox, pytest.mark.network]


def build(recipe: str, store: Path, *options: str) -> dict[str, Any]:
    """`disk-image build --json`."""
    command = [sys.executable, "-m", "pipelines", "build", str(PROJECT / "recipes" / recipe), "--json"]
    command += ["--git-sha", "1f" * 20]
    done = subprocess.run(
        [*command, "--store", str(store), *options], cwd=PROJECT, stdout=subprocess.PIPE, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param("quick", marks=pytest.mark.timeout(3600)),
        pytest.param("debian-minimal", marks=[pytest.mark.kernel, pytest.mark.timeout(4 * 3600)]),
    ],
)
def test_both_executors_give_one_digest(recipe: str, warm_store: Path, tmp_path: Path) -> None:
    local = build(recipe, warm_store, "--output", str(tmp_path / "local"))
    # What the local executor brought is the pool: no file is downloaded twice.
    options = ["--executor", "dagger", "--pool", str(warm_store / "blobs" / "sha256")]
    if base := os.environ.get("DISK_IMAGE_TEST_BASE"):
        options += ["--base", base]
    first = build(recipe, tmp_path / "store", *options, "--output", str(tmp_path / "dagger"))
    assert first["manifest_digest"] == local["manifest_digest"]
    assert first["composefs_digest"] == local["composefs_digest"]
    assert sbom_path(tmp_path / "dagger").read_bytes() == sbom_path(tmp_path / "local").read_bytes()
    ours, theirs = (json.loads(Path(one["build_record"]).read_bytes()) for one in (local, first))
    assert theirs["buildDefinition"] == ours["buildDefinition"]
    assert theirs["runDetails"]["builder"]["version"]["executor"].startswith("dagger ")
    again = build(recipe, tmp_path / "store", *options)
    assert again["manifest_digest"] == local["manifest_digest"]
    assert {stage["result"] for stage in again["stages"]} == {"cached"}
