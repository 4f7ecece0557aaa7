"""A Merkle tree on disk: entries are only appended, several processes may do so, kill -9 loses none that a
caller was told of.

    FOLDER/entries     each entry as two lengths (4 bytes, big-endian), SHA-256 of what follows, the
                       entry, what is kept with it outside the tree
    FOLDER/head        tree size and root hash, as JSON: what was last told to a caller
    FOLDER/lock        held (flock) while reading what others appended, and while appending

Order of an append: (1) lock, (2) read what others appended, (3) write the entry, fsync, (4) replace the
head, fsync, (5) unlock, answer. A process that dies in (3) leaves a torn last entry, which the next one
cuts off; nobody was told of it, because the head does not count it. A tree that no longer leads to its
head is damaged and is not served.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from supply_chain.errors import TrustError
from supply_chain.files import sync_folder
from supply_chain.trust.embedded.merkle import MerkleTree, leaf_hash

T = TypeVar("T")

_FRAME = struct.Struct(">II32s")
# Seconds to wait for another process, which holds the lock for some milliseconds an append.
_PATIENCE = 10.0
# Larger than any entry that a service lets in; a longer length is damage.
ENTRY_LIMIT = 1 << 20


class DiskFull(TrustError):
    """There is no room for another entry; what was told to callers is on disk."""


@dataclass(frozen=True, slots=True)
class Included:
    """An entry's place in a tree of `tree_size` leaves, and the proof of it."""

    index: int
    tree_size: int
    root: bytes
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Head:
    """A tree's size in leaves and its root hash."""

    tree_size: int
    root: bytes


class LogFile:
    """An append-only log in `folder`. Every method may block on the disk and on other processes, and raises
    TrustError when the files are damaged or can't be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tree = MerkleTree()
        self._index: dict[bytes, int] = {}
        self._offsets = [0]
        # -1: the head was not read yet
        self._head_size = -1
        self._damage: TrustError | None = None
        self._thread = threading.Lock()

    @classmethod
    def create(cls, folder: Path) -> LogFile:
        """An empty log in a new folder, which only its owner can read."""
        folder.mkdir(mode=0o700)
        for name in ("entries", "lock"):
            (folder / name).touch(mode=0o600)
        log = cls(folder)
        log._write_head()
        return log

    def append(self, entry: bytes, extra: bytes = b"") -> Included:
        """Add `entry`, or find it: the same bytes twice are one entry. `extra` is kept, but not in the
        tree.
        """
        with self._locked() as entries:  # (1), (2)
            leaf = leaf_hash(entry)
            if (index := self._index.get(leaf)) is None:
                entries.seek(self._offsets[-1])
                entries.write(_framed(entry, extra))  # (3)
                entries.flush()
                os.fsync(entries.fileno())
                index = self._integrate(leaf, len(entry) + len(extra))
            if self._head_size < self._tree.size:
                self._write_head()  # (4)
            return self._included(index)

    def head(self) -> Head:
        """The present size and root."""
        with self._locked():
            return Head(self._tree.size, self._tree.root())

    def find(self, leaf: bytes, tree_size: int) -> Included | None:
        """The place of the entry with this leaf hash in the tree of `tree_size`; None when it has none."""
        with self._locked():
            index = self._index.get(leaf)
            known = index is not None and index < tree_size <= self._tree.size
            return self._included(index, tree_size) if known and index is not None else None

    def entries(self, start: int, end: int) -> list[tuple[bytes, bytes]]:
        """The entries from `start` up to `end`, or up to the last, each with what was kept with it. Raises
        IndexError when there is none.
        """
        with self._locked() as entries:
            end = min(end, self._tree.size)
            if not 0 <= start < end:
                raise IndexError(f"no entries from {start} up to {end}")
            entries.seek(self._offsets[start])
            return [_read_frame(entries) for _ in range(start, end)]

    def read(self, ask: Callable[[MerkleTree], T]) -> T:
        """What `ask` says of the present tree."""
        with self._locked():
            return ask(self._tree)

    def _included(self, index: int, size: int | None = None) -> Included:
        size = self._tree.size if size is None else size
        proof = tuple(self._tree.inclusion_proof(index, size))
        return Included(index, size, self._tree.root(size), proof)

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        try:
            with (
                self._thread,
                (self._folder / "lock").open("rb") as lock,
                (self._folder / "entries").open("r+b") as entries,
            ):
                self._lock(lock)
                if self._damage is not None:
                    raise self._damage
                self._catch_up(entries)
                yield entries
        except OSError as error:
            what = f"{error.filename or self._folder}: {error.strerror}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(what, "make room there") from None
            raise TrustError(what, "give its owner access") from None

    def _lock(self, file: BinaryIO) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            with suppress(BlockingIOError):
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.monotonic() > deadline:
                raise TrustError(
                    f"{self._folder}: another process has held the log for {_PATIENCE:.0f} s",
                    "end the process that hangs: `fuser` on the file `lock` names it",
                )
            time.sleep(0.002)

    def _catch_up(self, entries: BinaryIO) -> None:
        """Take in what was appended since; cut off what was never whole."""
        size = os.fstat(entries.fileno()).st_size
        if size < self._offsets[-1]:
            raise self._damaged("entries is shorter than it was")
        if size == self._offsets[-1] and self._head_size >= 0:
            return
        entries.seek(self._offsets[-1])
        with suppress(_Torn):
            while True:
                entry, extra = _read_frame(entries)
                self._integrate(leaf_hash(entry), len(entry) + len(extra))
        head = self._read_head()
        if head.tree_size > self._tree.size:
            raise self._damaged(
                f"entry {self._tree.size} is torn or changed, the head counts {head.tree_size}"
            )
        if self._tree.root(head.tree_size) != head.root:
            raise self._damaged(f"its first {head.tree_size} entries do not lead to the head")
        self._head_size = head.tree_size
        if size > self._offsets[-1]:
            entries.truncate(self._offsets[-1])
        if size > self._offsets[-1] or head.tree_size < self._tree.size:
            os.fsync(entries.fileno())
            self._write_head()

    def _integrate(self, leaf: bytes, length: int) -> int:
        index = self._tree.append(leaf)
        self._index.setdefault(leaf, index)
        self._offsets.append(self._offsets[-1] + _FRAME.size + length)
        return index

    def _read_head(self) -> Head:
        path = self._folder / "head"
        with suppress(ValueError, TypeError, KeyError):
            loaded = json.loads(path.read_bytes())
            return Head(int(loaded["tree_size"]), bytes.fromhex(loaded["root"]))
        raise self._damaged("head is not what was written")

    def _write_head(self) -> None:
        head = {"tree_size": self._tree.size, "root": self._tree.root().hex()}
        new = self._folder / "head.new"
        with new.open("w") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump(head, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._folder / "head")
        self._head_size = self._tree.size
        sync_folder(self._folder)

    def _damaged(self, how: str) -> TrustError:
        """From now on this log serves nothing: what was read of it may be in the tree already."""
        self._damage = TrustError(
            f"{self._folder}: the log is damaged: {how}",
            "restore the whole folder from a backup, or make a new trust: a log never forgets",
        )
        return self._damage


class _Torn(Exception):
    """No whole entry follows."""


def _framed(entry: bytes, extra: bytes) -> bytes:
    digest = hashlib.sha256(entry + extra).digest()
    return _FRAME.pack(len(entry), len(extra), digest) + entry + extra


def _read_frame(entries: BinaryIO) -> tuple[bytes, bytes]:
    frame = entries.read(_FRAME.size)
    if len(frame) == _FRAME.size:
        length, extra, digest = _FRAME.unpack(frame)
        content = entries.read(length + extra) if length + extra <= ENTRY_LIMIT else b""
        if len(content) == length + extra and hashlib.sha256(content).digest() == digest:
            return content[:length], content[length:]
    raise _Torn
