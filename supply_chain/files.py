"""Files in layouts and beside them: read without waiting for anybody, replaced as a whole.

Others may have put there what they like: a fifo is not waited for, a device not read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """The file, unbuffered. Raises OSError, also for what is no regular file."""
    file = open(path, "rb", buffering=0, opener=_open)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_regular(path: Path, limit: int) -> bytes:
    """Its bytes, at most `limit` and one more, which says that there are too many. Raises OSError."""
    with open_regular(path) as file:
        parts = bytearray()
        while part := file.read(limit + 1 - len(parts)):
            parts += part
        return bytes(parts)


def replace_file(path: Path, content: bytes) -> None:
    """Write the file by rename(2), when its bytes are on disk: after a crash it is the old one or this one.
    Raises OSError, and then leaves nothing behind.
    """
    fresh = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with fresh.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the file or folder (flock(2)) against everybody who asks for the same. Raises OSError; without
    `wait` BlockingIOError when somebody has it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have on disk which files are in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
