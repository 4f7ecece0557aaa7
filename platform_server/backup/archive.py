"""The file itself: a tar archive (POSIX.1-1988 headers, GNU's for 8 GiB and more) of plain files, one after
the other. `tar -t` and `tar -x` read it.

Reading takes exactly what writing makes: a header must be, byte for byte, the one that its name and size
get. So there are no links, devices, extended headers, sparse files or owners to be refused one by one.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from platform_server.backup.format import DAMAGED
from platform_server.errors import BackupError, shown
from supply_chain.files import open_regular, sync_folder

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_CHUNK = 1 << 20
_NAMED = re.compile(r"[a-z0-9_./-]{1,100}")


class Writer:
    """Writes members, in the order in which they come."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, name: str, content: bytes) -> None:
        """A member with that content."""
        self.stream(name, len(content), (content,))

    def stream(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """A member of `size` bytes. Raises BackupError when the chunks have another number."""
        self._file.write(_header(name, size))
        written = 0
        for chunk in chunks:
            written += len(chunk)
            self._file.write(chunk)
        if written != size:
            raise BackupError(f"{name}: expected {size} bytes, found {written}: it changed", "run it again")
        self._file.write(bytes(-size % _BLOCK))

    def end(self) -> None:
        """After the last member."""
        self._file.write(_END)


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """A new file that only its owner can read. It gets its name when it is whole and on the disk: before,
    and when the block raises, there is nothing under it. Raises BackupError, also when the name is taken.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        if path.exists():
            raise BackupError(f"{path}: expected a new file, found one", "name another file, or remove it")
        # What a killed run left is its own.
        part.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(part, flags, 0o600), "wb", _CHUNK) as file:
            try:
                writer = Writer(file)
                yield writer
                writer.end()
                file.flush()
                os.fsync(file.fileno())
                part.rename(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        sync_folder(path.parent)
    except OSError as error:
        raise BackupError(
            f"{path}: {error.strerror or error}", "name a file that can be written, where there is room"
        ) from None


class Reader:
    """Reads members in the order in which they are. Every method raises BackupError for what is none."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = 0
        self._padding = 0
        self.name = ""
        self.size = 0
        self.next()

    def next(self) -> None:
        """Go to the next member, whose `name` and `size` are then known; the one before must be read."""
        assert not self._left
        if any(self._exactly(self._padding)):
            raise BackupError(f"{self.name}: expected zeros after it, found others", DAMAGED)
        block = self._exactly(_BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
            name, size = info.name, info.size
            if _NAMED.fullmatch(name) is None or size < 0 or _header(name, size) != block:
                raise BackupError(f"expected a member of a backup, found {shown(name)}", DAMAGED)
        except (tarfile.HeaderError, ValueError):
            raise BackupError(
                "expected the header of a member, found something else",
                "name a file that disk-image platform backup made",
            ) from None
        self.name, self.size, self._left, self._padding = name, size, size, -size % _BLOCK

    def content(self, limit: int) -> bytes:
        """All of the member, which has at most `limit` bytes."""
        if self.size > limit:
            raise BackupError(f"{self.name}: expected at most {limit} bytes, found {self.size}", DAMAGED)
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """All of the member, a piece at a time."""
        while self._left:
            piece = self._exactly(min(_CHUNK, self._left))
            self._left -= len(piece)
            yield piece

    def end(self) -> None:
        """Nothing may follow the member."""
        assert not self._left
        if self._exactly(self._padding + len(_END)).strip(b"\0") or self._file.read(1):
            raise BackupError(f"expected nothing after {self.name}, found more", DAMAGED)

    def _exactly(self, size: int) -> bytes:
        try:
            found = self._file.read(size)
        except OSError as error:
            raise BackupError(
                f"the backup can't be read: {error.strerror or error}", "try another copy"
            ) from None
        if len(found) != size:
            raise BackupError(
                f"the backup is cut off after {self.name or 'nothing'}: expected {size} bytes more, "
                f"found {len(found)}",
                DAMAGED,
            )
        return found


def opened(path: Path) -> BinaryIO:
    """The file of a backup, to be read. Raises BackupError."""
    try:
        return open_regular(path)
    except OSError as error:
        raise BackupError(f"{path}: {error.strerror or error}", "name a backup") from None


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")
