"""What an archive has in place of locked files that it no longer serves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cmp_to_key
from pathlib import Path

from pipelines.apt import Stanza
from pipelines.lock import Lock, LockedFile
from pipelines.relations import compare
from pipelines.resolve import indexes, locked_file, sources_of, tools_sources
from pipelines.tools import Tools

# Versions inside names: 6.12.117+deb13 of a kernel image, 3.13 of an interpreter, the 5 of libfoo5.
_VERSION = re.compile(r"\d+(?:[.+-]?(?:\d+|deb\d+))*")


def successors(
    gone: Iterable[LockedFile],
    lock: Lock,
    archives: Sequence[str],
    *,
    tools: Tools | None = None,
    keys: Path | None = None,
) -> dict[str, LockedFile | None]:
    """For files of `lock` that the archive no longer has: by name, the newest file it has instead, or None.

    A name with a version in it is succeeded by the newest package whose name differs in that alone. `tools`
    says that `lock` is the tools'. Nothing is taken on this word, so an extra suite may be expired. Raises
    ArchiveError when the indexes can't be had.
    """
    if tools is None:
        sources = sources_of(archives, lock.suite)
    else:
        sources = tools_sources(tools, archives, [extra.suite for extra in tools.extra])
    with indexes(sources, lock.arch, keys) as apt:
        families: dict[str, list[Stanza]] = {}
        for name, stanzas in apt.stanzas().items():
            families.setdefault(_family(name), []).extend(stanzas)
        found: dict[str, LockedFile | None] = {}
        for file in gone:
            same = apt.stanzas().get(file.name) or families.get(_family(file.name), [])
            newest = max(same, key=cmp_to_key(_older), default=None)
            found[file.name] = None if newest is None else locked_file(newest, file.sets)
        return found


def _family(name: str) -> str:
    return _VERSION.sub("#", name)


def _older(left: Stanza, right: Stanza) -> int:
    return compare(left.fields["Version"], right.fields["Version"])
