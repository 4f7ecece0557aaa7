"""Where tests/peers/build has put the peers; a test whose peer is not there is skipped, with the reason."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disk-image-peers"


def go_program(name: str) -> str:
    """The program of the list `go`, built from what is pinned now."""
    row = _row("go", name)
    program, when, folder, *build = row
    pinned = [*sorted((HERE / folder).glob("*.go")), HERE / folder / "go.mod", HERE / folder / "go.sum"]
    said = " ".join((program, folder, *build)).encode() + b"\n"
    key = hashlib.sha256(said + b"".join(file.read_bytes() for file in pinned)).hexdigest()[:16]
    path = CACHE / "bin" / f"{name}.{key}"
    if not path.exists():
        command = "make test" if when == "test" else "make test-peers"
        pytest.skip(f"{name}, as pinned in tests/peers/go, is not in {CACHE}: {command} builds it")
    return os.fspath(path)


def cargo_program(name: str) -> str:
    """The program of the list `cargo` in the version that stands there, from the cache or PATH."""
    version = _row("cargo", name)[2]
    for folder in (os.fspath(CACHE / "bin"), os.environ["PATH"]):
        found = shutil.which(name, path=folder)
        if found is None:
            continue
        told = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60)
        if told.stdout.strip() == f"{name} {version}":
            return found
    pytest.skip(f"{name} {version} is neither in {CACHE} nor on PATH: make test-peers builds it")


def _row(listed: str, name: str) -> list[str]:
    rows = [line.split() for line in (HERE / listed).read_text().splitlines()]
    (row,) = (row for row in rows if row and row[0] == name)
    return row
