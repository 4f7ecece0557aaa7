"""The input repository with its packages stored instead of compressed.

Each package is unpacked twice (once to have a dpkg in the root, once by it), one after the other on one
processor. Decompressing them all beforehand, side by side, takes half of the stage's time away and changes
nothing that dpkg installs.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stages.shared import deb
from stages.shared.job import progress


def stored_repository(repository: Path, folder: Path) -> Path:
    """Make `folder`: stored packages and the index `Packages` over them. Returns `folder`."""
    folder.mkdir()
    packages = sorted(repository.rglob("*.deb"), key=lambda path: path.stat().st_size, reverse=True)
    total = sum(path.stat().st_size for path in packages)
    done = 0
    stanzas: list[str] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        made = pool.map(lambda path: _stored(path, folder), packages)
        for path, stanza in zip(packages, made, strict=True):
            stanzas.append(stanza)
            done += path.stat().st_size
            progress(done, total)
    (folder / "Packages").write_text("\n".join(sorted(stanzas)), "utf-8")
    return folder


def _stored(path: Path, folder: Path) -> str:
    stored = folder / path.name
    deb.store(path, stored)
    with stored.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return (
        f"{deb.control(stored)}\nFilename: {stored.name}\nSize: {stored.stat().st_size}\nSHA256: {digest}\n"
    )
