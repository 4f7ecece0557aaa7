"""Trees for the tests of composefs: made by hand, and drawn at random."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from stages.composefs import dump
from stages.composefs.dump import Content
from stages.shared import canonical_tar, fsverity
from stages.shared.canonical_tar import Entry, Kind

EPOCH = 1_700_000_000
Tree = Sequence[tuple[Entry, bytes]]
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def file(
    path: str, content: bytes, mode: int = 0o644, mtime: int = EPOCH, capability: bytes = b""
) -> tuple[Entry, bytes]:
    return Entry(path, Kind.FILE, mode, 0, 0, mtime, len(content), capability=capability), content


def folder(path: str, mode: int = 0o755, mtime: int = EPOCH) -> tuple[Entry, bytes]:
    return Entry(path, Kind.DIRECTORY, mode, 0, 0, mtime), b""


def symlink(path: str, target: str) -> tuple[Entry, bytes]:
    return Entry(path, Kind.SYMLINK, 0o777, 0, 0, EPOCH, target=target), b""


def hardlink(path: str, to: Entry) -> tuple[Entry, bytes]:
    return replace(to, path=path, kind=Kind.HARDLINK, size=0, target=to.path, capability=b""), b""


def _order(pair: tuple[Entry, bytes]) -> bytes:
    return canonical_tar.sort_key(pair[0].path)


def write_tar(path: Path, tree: Tree) -> Path:
    """The tree's canonical tar."""
    with path.open("wb") as stream, canonical_tar.Writer(stream, EPOCH) as writer:
        for entry, content in sorted(tree, key=_order):
            writer.add(entry, content)
    return path


def contents(tree: Tree) -> dict[str, Content]:
    """What the dump says about each regular file that is not empty."""
    return {
        entry.path: Content(inline=data) if entry.size <= 64 else Content(digest=fsverity.digest(data))
        for entry, data in tree
        if entry.kind is Kind.FILE and entry.size
    }


def dump_of(tree: Tree) -> bytes:
    """The tree's dump."""
    return b"".join(dump.lines([entry for entry, _ in sorted(tree, key=_order)], contents(tree)))


_NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: name not in (b".", b"..") and not {0, 0x2F} & {*name}
)
_CONTENTS = st.one_of(
    st.sampled_from([b"", b"-", b"x" * 64, b"x" * 65, b"y" * 4097]), st.binary(max_size=200)
)


_OWNERS = st.sampled_from([0, 1000, 65535, 65536, dump.OWNER_MOST])
_TARGETS = st.one_of(_NAMES, st.sampled_from([b"-", b"x" * dump.TARGET_MOST, b"../../usr/lib"]))


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """A canonical list of entries with contents: every kind, the limits of the dump, and odd names."""
    folders, made = [""], {".": folder(".", draw(st.integers(0, 0o7777)), draw(st.integers(0, EPOCH)))}
    files: list[Entry] = []
    for _ in range(draw(st.integers(0, 15))):
        path = draw(st.sampled_from(folders)) + os.fsdecode(draw(_NAMES))
        if path in made:
            continue
        match draw(st.sampled_from(Kind)):
            case Kind.DIRECTORY:
                made[path] = folder(path, draw(st.integers(0, 0o7777)), draw(st.integers(0, EPOCH)))
                folders.append(path + "/")
            case Kind.SYMLINK:
                made[path] = symlink(path, os.fsdecode(draw(_TARGETS)))
            case Kind.HARDLINK if files and os.fsencode(path) > os.fsencode(files[-1].path):
                made[path] = hardlink(path, files[-1])
            case _:
                capability = draw(st.sampled_from([b"", CAPABILITY]))
                entry, content = file(
                    path, draw(_CONTENTS), draw(st.integers(0, 0o7777)), capability=capability
                )
                files.append(replace(entry, uid=draw(_OWNERS), gid=draw(_OWNERS)))
                made[path] = files[-1], content
    return sorted(made.values(), key=_order)
