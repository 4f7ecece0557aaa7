"""The canonical tar: the one form in which a tree travels (docs/design.md), so that equal trees are equal
bytes.

POSIX.1-2001 pax interchange format (pax(1), «pax Interchange Format»): entries sorted by the bytes of
their path, every parent present as a directory before its children, numeric owners, whole seconds, two
zero blocks at the end and nothing after them. An extended header exists only for what ustar can't say:
long paths and targets, owners above 2097151, sizes from 8 GiB, and the one extended attribute that
matters, security.capability (capabilities(7)).
"""

from __future__ import annotations

import math
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from stages.shared.job import Failure
from stages.shared.tar_header import BLOCK, CAPABILITY, Entry, Kind, header, parse

__all__ = ["CAPABILITY", "Entry", "Kind", "Writer", "pack", "read", "sort_key", "unpack"]

_CHUNK = 1 << 20
# Pages of a file that were looked at count as this process's until it lets go of them.
_RELEASE = 4 << 20
_REBUILD = "the file is damaged, or was not written by this project; remove it and build again"


def sort_key(path: str) -> bytes:
    """The order of entries: by path bytes, the root before everything (`-` would sort before `.`)."""
    return b"" if path == "." else os.fsencode(path)


class Writer:
    """Writes entries in order; refuses (Failure) what would not be canonical. Times are clamped to 0 …
    `clamp`.
    """

    def __init__(self, stream: BinaryIO, clamp: int) -> None:
        self._stream = stream
        self._clamp = clamp
        self._rules = _Rules("tar being written", "add entries sorted by path bytes, parents first")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._stream.write(bytes(2 * BLOCK))

    def add(self, entry: Entry, content: BinaryIO | bytes | memoryview | None = None) -> None:
        """Add one entry; a file's `content` must hold exactly `entry.size` bytes (None only for size 0)."""
        if not 0 <= entry.mtime <= self._clamp:
            entry = replace(entry, mtime=min(max(entry.mtime, 0), self._clamp))
        self._rules.check(entry)
        self._stream.write(header(entry))
        if content is None:
            content = b""
        if isinstance(content, (bytes, memoryview)):
            self._stream.write(content)
            copied = len(content)
        else:
            copied = 0
            while chunk := content.read(_CHUNK):
                self._stream.write(chunk)
                copied += len(chunk)
        if copied != entry.size:
            raise Failure(
                f"{entry.path}: expected {entry.size} bytes of content, found {copied}",
                "the tree changed while it was packed",
            )
        if copied % BLOCK:
            self._stream.write(bytes(-copied % BLOCK))


def read(path: Path) -> Iterator[tuple[Entry, int]]:
    """Every entry, with the content's offset in the file (0 when there is none). Raises Failure where the
    form breaks.
    """
    rules = _Rules(path.name, _REBUILD)
    with _mapped(path) as data:
        released = start = 0
        while data[start : start + BLOCK].strip(b"\0"):
            try:
                entry, offset = parse(data, start)
            except ValueError as error:
                raise rules.broken(str(error)) from None
            rules.check(entry)
            yield entry, offset if entry.size else 0
            content_end = offset + entry.size
            start = content_end + -entry.size % BLOCK
            if start > len(data):
                raise rules.broken(
                    f"truncated: {entry.path} ends at byte {content_end}, the file at {len(data)}"
                )
            if data[content_end:start].strip(b"\0"):
                raise rules.broken(f"{entry.path}: padding is not zero")
            released = _release(data, released, start)
        if len(data) - start != 2 * BLOCK or data[start:].strip(b"\0"):
            raise rules.broken(f"expected the two zero blocks of the end at byte {start}")


def pack(
    folder: Path,
    output: Path,
    clamp: int,
    *,
    exclude: Callable[[str], bool] = lambda path: False,
    made_since: float = math.inf,
) -> None:
    """Write the tree at `folder` to `output`. `exclude` is asked once a path; an excluded directory is not
    entered. What was last changed at `made_since` (seconds of the epoch) or later gets the time `clamp`,
    so that the clock leaves no trace even where it is behind `clamp`.

    Raises Failure for a device node, socket or fifo that is not excluded.
    """
    first: dict[tuple[int, int], str] = {}
    with output.open("wb", _CHUNK) as stream, Writer(stream, clamp) as writer:
        for path in sorted(_walk(folder, exclude), key=sort_key):
            full = os.path.join(folder, path)
            info = os.lstat(full)
            mtime = clamp if info.st_mtime >= made_since else int(info.st_mtime)
            entry = Entry(
                path, _kind(path, info), stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, mtime
            )
            if entry.kind is Kind.SYMLINK:
                # Linux gives every link 0777; other modes on disk come from elsewhere and mean nothing.
                writer.add(replace(entry, mode=0o777, target=os.readlink(full)))
            elif entry.kind is Kind.DIRECTORY:
                writer.add(entry)
            elif info.st_nlink > 1 and first.setdefault((info.st_dev, info.st_ino), path) != path:
                writer.add(replace(entry, kind=Kind.HARDLINK, target=first[info.st_dev, info.st_ino]))
            else:
                with open(full, "rb", buffering=0) as content:
                    writer.add(replace(entry, size=info.st_size, capability=_capability(full)), content)


def unpack(tar: Path, folder: Path) -> None:
    """Make the tree in `folder`, which must be empty. Owners and capabilities are set for root; else all
    is the caller's.

    No path can leave `folder`: each parent is a directory of the same tar, never a link.
    """
    folder.mkdir(exist_ok=True)
    root = os.geteuid() == 0
    directories: list[tuple[str, Entry]] = []
    with _mapped(tar) as data:
        released = 0
        for entry, offset in read(tar):
            full = os.path.join(folder, entry.path)
            if entry.kind is Kind.HARDLINK:
                os.link(os.path.join(folder, entry.target), full)
                continue
            if entry.kind is Kind.SYMLINK:
                os.symlink(entry.target, full)
            elif entry.kind is Kind.DIRECTORY:
                if entry.path != ".":
                    os.mkdir(full, 0o700)
                directories.append((full, entry))
            else:
                with open(full, "xb", buffering=0) as file:
                    for position in range(offset, offset + entry.size, _CHUNK):
                        file.write(data[position : min(position + _CHUNK, offset + entry.size)])
                        released = _release(data, released, position)
            if root:
                os.chown(full, entry.uid, entry.gid, follow_symlinks=False)
            if entry.kind is Kind.FILE:
                os.chmod(full, entry.mode)
                if root and entry.capability:
                    os.setxattr(full, CAPABILITY, entry.capability)
            if entry.kind is not Kind.DIRECTORY:
                os.utime(full, (entry.mtime, entry.mtime), follow_symlinks=False)
    # Last and deepest first: making children changes a directory's time, and its mode may forbid them.
    for full, entry in reversed(directories):
        os.chmod(full, entry.mode)
        os.utime(full, (entry.mtime, entry.mtime))


class _Rules:
    """What must hold between the entries of one tar."""

    def __init__(self, where: str, hint: str) -> None:
        self._where = where
        self._hint = hint
        self._last: bytes | None = None
        self._directories: set[str] = set()
        self._files: dict[str, Entry] = {}

    def check(self, entry: Entry) -> None:
        path = sort_key(entry.path)
        if self._last is not None and path <= self._last:
            raise self.broken(f"{entry.path}: comes after {os.fsdecode(self._last)}, out of order or twice")
        self._last = path
        if self._directories:
            parent = entry.path.rpartition("/")[0] or "."
            if parent not in self._directories:
                raise self.broken(f"{entry.path}: its parent {parent} is not a directory of this tar")
            if b"//" in path or path.startswith(b"/") or not {b".", b".."}.isdisjoint(path.split(b"/")):
                raise self.broken(f"{entry.path}: not a normalised relative path")
        elif entry.path != "." or entry.kind is not Kind.DIRECTORY:
            raise self.broken(f"expected the root directory `.` as the first entry, found {entry.path}")
        if (
            not 0 <= entry.mode <= 0o7777
            or min(entry.uid, entry.gid, entry.size) < 0
            or "\0" in entry.path + entry.target
        ):
            raise self.broken(f"{entry.path}: mode, owner, size or name out of range: {entry}")
        if entry.kind is Kind.DIRECTORY:
            self._directories.add(entry.path)
        elif entry.kind is Kind.FILE:
            self._files[entry.path] = entry
        elif not entry.target:
            raise self.broken(f"{entry.path}: a link without a target")
        elif entry.kind is Kind.HARDLINK:
            self._check_hardlink(entry)
        if (entry.kind is not Kind.FILE and (entry.size or entry.capability)) or (
            entry.target and entry.kind in (Kind.FILE, Kind.DIRECTORY)
        ):
            raise self.broken(f"{entry.path}: a {entry.kind} can't have what this entry has: {entry}")

    def _check_hardlink(self, entry: Entry) -> None:
        first = self._files.get(entry.target)
        if first is None:
            raise self.broken(f"{entry.path}: hard link to {entry.target}, which is no earlier file")
        if (first.mode, first.uid, first.gid, first.mtime) != (
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime,
        ):
            raise self.broken(
                f"{entry.path}: expected the mode, owner and time of {entry.target} ({first}), found {entry}"
            )

    def broken(self, why: str) -> Failure:
        return Failure(f"{self._where}: {why}", self._hint)


def _release(data: mmap.mmap | bytes, start: int, end: int) -> int:
    """Let go of the pages from `start` to `end` once they are worth a call; where the next call starts.

    They stay in the page cache: another look maps them again (madvise(2), MADV_DONTNEED).
    """
    length = (end - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if length < _RELEASE or not isinstance(data, mmap.mmap) or not hasattr(data, "madvise"):
        return start
    data.madvise(mmap.MADV_DONTNEED, start, length)
    return start + length


class _mapped:
    """A file's bytes by mmap; empty files can't be mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> mmap.mmap | bytes:
        with self._path.open("rb") as file:
            self._data: mmap.mmap | bytes = (
                mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if os.fstat(file.fileno()).st_size else b""
            )
        return self._data

    def __exit__(self, *_: object) -> None:
        if isinstance(self._data, mmap.mmap):
            self._data.close()


def _walk(folder: Path, exclude: Callable[[str], bool]) -> Iterator[str]:
    """Every path below `folder`, in no order, `.` included."""
    yield "."
    pending = [""]
    while pending:
        inside = pending.pop()
        with os.scandir(os.path.join(folder, inside)) as listing:
            for found in listing:
                path = inside + found.name
                if exclude(path):
                    continue
                yield path
                if found.is_dir(follow_symlinks=False):
                    pending.append(path + "/")


def _kind(path: str, info: os.stat_result) -> Kind:
    if stat.S_ISREG(info.st_mode):
        return Kind.FILE
    if stat.S_ISDIR(info.st_mode):
        return Kind.DIRECTORY
    if stat.S_ISLNK(info.st_mode):
        return Kind.SYMLINK
    raise Failure(
        f"{path}: device nodes, sockets and fifos have no place in a tree", "leave it out of the tree"
    )


def _capability(full: str) -> bytes:
    try:
        return os.getxattr(full, CAPABILITY, follow_symlinks=False)
    except OSError:  # ENODATA: none; ENOTSUP: the file system has no such thing
        return b""
