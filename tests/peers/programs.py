"""Where tests/peers/build has put the peers; a test whose peer is not there is skipped, with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disk-image-peers"


def go_program(name: str) -> str:
    """The program of the list `go`, built from what is pinned now."""
    told = subprocess.run([HERE / "build", "where", name], capture_output=True, text=True, check=True)
    path = Path(told.stdout.strip())
    if not path.is_file():
        command = {"test": "make test", "peers": "make test-peers"}[_row("go", name)[1]]
        pytest.skip(f"{name}, as pinned in tests/peers, is not in {CACHE}: {command} builds it")
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


def npm_program(name: str) -> list[str]:
    """The command of a program of the list `npm`, on its own Node."""
    _, _, version, node = _row("npm", name)
    folder = CACHE / "npm" / f"{name}-{version}-{node}" / "node_modules" / ".bin"
    if not (folder / name).exists():
        pytest.skip(f"{name} {version} is not in {CACHE}: make test-peers installs it where npm is on PATH")
    return [os.fspath(folder / "node"), os.fspath((folder / name).resolve())]


def _row(listed: str, name: str) -> list[str]:
    rows = [line.split() for line in (HERE / listed).read_text().splitlines()]
    (row,) = (row for row in rows if row and row[0] == name)
    return row
