"""A locked file, as the plan's parameters hold it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stages.shared.job import Failure


@dataclass(frozen=True, slots=True)
class Locked:
    """One file by content. `pool_path` is below an archive's root; `size` is in bytes."""

    name: str
    version: str
    arch: str
    sha256: str
    size: int
    pool_path: str

    @classmethod
    def parse(cls, loaded: Mapping[str, Any]) -> Locked:
        """Raises Failure for a pool path that is not below `pool/`."""
        file = cls(**{field: loaded[field] for field in cls.__slots__})
        parts = PurePosixPath(file.pool_path).parts
        if parts[:1] != ("pool",) or ".." in parts or str(PurePosixPath(*parts)) != file.pool_path:
            raise Failure(
                f"{file}: pool path {file.pool_path!r} is not below pool/", "resolve again: disk-image lock"
            )
        return file

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.arch})"

    def mismatch(self, path: Path) -> str | None:
        """What is wrong with the file at `path`, expected and found; None when it is this one."""
        size = path.stat().st_size
        if size != self.size:
            return f"expected {self.size} bytes, found {size}"
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        return None if found == self.sha256 else f"expected sha256 {self.sha256}, found {found}"
