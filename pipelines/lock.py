"""The lock: every package and source a recipe (or the tools) stands on, by content.

A lock names files, never places: no URL, no index digest, no date. `pool_path` is the path below an
archive's root.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import RecipeError

SCHEMA = 1


class LockedFile(BaseModel):
    """One file of the archive. `sets` are the sets that use it: root, kernel, initramfs, or tools sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.+:~-]+$")]
    arch: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(gt=0)]
    pool_path: Annotated[str, Field(pattern=r"^pool(/[A-Za-z0-9+_~%:-][A-Za-z0-9.+:~_%-]*)+$")]
    sets: tuple[str, ...]


class Lock(BaseModel):
    """`packages` are to be installed or unpacked; `sources` hold source code that a stage builds.

    `requested` are the names that each set was resolved from: a lock made before its recipe changed is seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)]
    suite: str
    arch: str
    requested: dict[str, tuple[str, ...]]
    packages: tuple[LockedFile, ...]
    sources: tuple[LockedFile, ...] = ()

    def of_set(self, name: str) -> tuple[LockedFile, ...]:
        """Packages and sources of one set, in the lock's order."""
        return tuple(file for file in (*self.packages, *self.sources) if name in file.sets)

    def sets(self) -> tuple[str, ...]:
        """Every set name, sorted."""
        return tuple(sorted({name for file in (*self.packages, *self.sources) for name in file.sets}))

    def ordered(self) -> Lock:
        """The same lock, sorted by name, version, arch."""
        return self.model_copy(
            update={
                "requested": {name: tuple(sorted(asked)) for name, asked in sorted(self.requested.items())},
                "packages": tuple(sorted(self.packages, key=_order)),
                "sources": tuple(sorted(self.sources, key=_order)),
            }
        )

    def to_bytes(self) -> bytes:
        """The file's one form: ordered; two spaces; a final newline."""
        return (json.dumps(self.ordered().model_dump(mode="json", by_alias=True), indent=2) + "\n").encode()


def _order(file: LockedFile) -> tuple[str, str, str]:
    return (file.name, file.version, file.arch)


def load_lock(path: Path, command: str) -> Lock:
    """Read a lock. Raises RecipeError naming entry, field and rule; `command` would make a new one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RecipeError(f"{path}: no lock", command) from None
    return parse_lock(data, str(path), command)


def parse_lock(content: bytes, what: str, hint: str) -> Lock:
    """Read a lock's bytes. Raises RecipeError naming `what`, entry, field and rule."""
    try:
        return Lock.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            f"{what}: {where or 'lock'}: {first['msg']} (found {str(first['input'])[:80]!r})", hint
        ) from None
