"""Packages to nodes: each package's files, without what no stage reads."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stages.shared import deb
from stages.shared.canonical_tar import Kind
from stages.shared.job import Failure, progress
from stages.shared.tree import Node

# What people read and programs don't: half of the paths, a quarter of the bytes. Time zones: stages run
# under TZ=UTC.
DROPPED = (
    "usr/share/bash-completion/",
    "usr/share/bug/",
    "usr/share/doc/",
    "usr/share/doc-base/",
    "usr/share/info/",
    "usr/share/lintian/",
    "usr/share/locale/",
    "usr/share/man/",
    "usr/share/zoneinfo/",
    "usr/share/zsh/",
)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """One package's paths. `links` are hard links: path → the path it is another name of."""

    package: str
    nodes: dict[str, Node]
    links: dict[str, str]


def unpack_all(packages: Sequence[Path]) -> list[Unpacked]:
    """Unpack side by side (xz runs outside the interpreter's lock); the result is in the order of
    `packages`.
    """
    if not packages:
        raise Failure("the repository holds no package", "give the tools set packages in stages/tools.toml")
    total = sum(path.stat().st_size for path in packages)
    done = 0
    results: dict[Path, Unpacked] = {}
    largest_first = sorted(packages, key=lambda path: path.stat().st_size, reverse=True)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for path, unpacked in zip(largest_first, pool.map(unpack, largest_first), strict=True):
            results[path] = unpacked
            done += path.stat().st_size
            progress(done, total)
    return [results[path] for path in packages]


def unpack(path: Path) -> Unpacked:
    """One package's files: owned by 0:0, no setuid, setgid or sticky bits, directories 0755 (nobody but 0
    uses them).
    """
    nodes: dict[str, Node] = {}
    links: dict[str, str] = {}
    with deb.data(path) as archive:
        for member in archive:
            name = _normal(member.name, path)
            if name == "." or name.startswith(DROPPED):
                continue
            if member.isdir():
                nodes[name] = Node(Kind.DIRECTORY, 0o755)
            elif member.issym():
                nodes[name] = Node(Kind.SYMLINK, 0o777, target=member.linkname)
            elif member.islnk():
                links[name] = _normal(member.linkname, path)
            elif member.isreg():
                nodes[name] = Node(Kind.FILE, member.mode & 0o777, content=_content(archive, member))
            else:
                raise Failure(
                    f"{path.name}: {name} is a device node or a fifo",
                    "leave this package out of the tools set",
                )
    return Unpacked(path.name.partition("_")[0], nodes, links)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    found = content.read() if content is not None else b""
    if len(found) != member.size:
        raise Failure(
            f"{member.name}: expected {member.size} bytes, found {len(found)}",
            "remove the package from the store",
        )
    return found


def _normal(name: str, path: Path) -> str:
    normal = os.path.normpath(name)
    if normal.startswith(("/", "../")) or normal == "..":
        raise Failure(
            f"{path.name}: the path {name!r} leaves the tree", "leave this package out of the tools set"
        )
    return normal
