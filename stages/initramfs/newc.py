"""The newc cpio archive that the kernel unpacks as its first root.

Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst. Fields that a builder's file system
would leak are fixed: inode numbers count from 1 in the order written, device numbers and owners are 0, names
have no leading slash.
"""

from __future__ import annotations

import stat
from typing import BinaryIO

_LAST = "TRAILER!!!"
_MAX = 0xFFFFFFFF


class Writer:
    """Writes entries in the order given, which must be sorted by path bytes with parents first.

    `mtime` is every entry's time, in seconds since the epoch. Raises ValueError for a wrong order, a missing
    parent, an unsafe name or a number that the format's 32 bits can't hold.
    """

    def __init__(self, stream: BinaryIO, mtime: int) -> None:
        if not 0 <= mtime <= _MAX:
            raise ValueError(f"mtime {mtime} does not fit newc's 32 bits")
        self._stream = stream
        self._mtime = mtime
        self._ino = 0
        self._previous = b""
        self._directories = {""}

    def directory(self, path: str, mode: int, links: int) -> None:
        """A directory; `links` is 2 plus the number of its subdirectories."""
        self._check(path)
        self._directories.add(path)
        self._entry(path, stat.S_IFDIR | mode, links, b"")

    def file(self, path: str, mode: int, content: bytes) -> None:
        self._check(path)
        self._entry(path, stat.S_IFREG | mode, 1, content)

    def symlink(self, path: str, target: str) -> None:
        self._check(path)
        self._entry(path, stat.S_IFLNK | 0o777, 1, target.encode())

    def close(self) -> None:
        """The trailer; no padding follows it, because the archive is the whole stream."""
        self._header(0, 0, 1, 0, 0, _LAST)

    def _check(self, path: str) -> None:
        raw = path.encode()
        parts = path.split("/")
        if "" in parts or "." in parts or ".." in parts or path == _LAST or "\0" in path:
            raise ValueError(f"{path!r} is not a plain relative path")
        if raw <= self._previous:
            raise ValueError(f"{path!r} is out of order after {self._previous.decode()!r}")
        if "/".join(parts[:-1]) not in self._directories:
            raise ValueError(f"{path!r} has no parent directory in the archive")
        self._previous = raw

    def _entry(self, path: str, mode: int, links: int, content: bytes) -> None:
        if len(content) > _MAX:
            raise ValueError(f"{path!r}: {len(content)} bytes do not fit newc's 32 bits")
        self._ino += 1
        self._header(self._ino, mode, links, self._mtime, len(content), path)
        self._stream.write(content)
        self._stream.write(bytes(-len(content) % 4))

    def _header(self, ino: int, mode: int, links: int, mtime: int, size: int, path: str) -> None:
        name = path.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (ino, mode, 0, 0, links, mtime, size, 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._stream.write(header + bytes(-len(header) % 4))
