"""Backups as tests take, look at, change and restore them."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from platform_server.backup.archive import Writer
from platform_server.backup.make import Made, backup
from platform_server.backup.read import Contents
from platform_server.backup.restore import restore
from platform_server.backup.rows import Rows, heads_of
from platform_server.state_folder import Platform, open_platform
from platform_server.tables import Base

Digests = Mapping[str, tuple[int, str]]
Member = tuple[str, bytes]


@dataclass(frozen=True)
class Target:
    """Where something is restored to, which does not exist yet."""

    folder: Path
    database: str | None = None

    def open(self) -> Platform:
        return open_platform(self.folder, database=self.database)


@dataclass
class Told:
    """What was told."""

    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def take(platform: Platform, path: Path, *, with_key: bool = True) -> Made:
    """A backup of the platform."""
    return backup(platform, path, with_key=with_key, told=Told())


def put(path: Path, target: Target, key: Path | None = None, *, dry_run: bool = False) -> Contents:
    """Restore it."""
    return restore(path, target.folder, target.database, key=key, dry_run=dry_run, told=Told())


def digests(platform: Platform) -> Digests:
    """Number of rows and SHA-256 of each table's."""
    with platform.database.snapshot() as connection:
        return {each.name: Rows(each).digest(connection) for each in heads_of(Base.metadata)}


def rows_of(target: Target) -> Digests:
    """The same of what was restored."""
    platform = target.open()
    with closing(platform.database):
        return digests(platform)


def members(path: Path) -> list[Member]:
    """Names and contents, as any program reads a tar archive."""
    with tarfile.open(path, "r:") as archive:
        found = []
        for info in archive:
            file = archive.extractfile(info)
            assert file is not None
            found.append((info.name, file.read()))
        return found


def build(path: Path, content: Sequence[Member]) -> Path:
    """A backup of these members."""
    with path.open("wb") as file:
        writer = Writer(file)
        for name, each in content:
            writer.add(name, each)
        writer.end()
    return path


def changed(content: Sequence[Member], name: str, change: Callable[[bytes], bytes]) -> list[Member]:
    """The members with another content of one."""
    assert name in dict(content)
    return [(each, change(found) if each == name else found) for each, found in content]
