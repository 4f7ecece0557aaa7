"""Locks between processes: flock(2) on files, which ends with its holder however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Lock:
    """A held lock; it ends with `release`, or with the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the next one have it."""
        os.close(self._descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def try_lock(path: Path) -> Lock | None:
    """The exclusive lock of a file, or None when anyone else holds it, in this process too."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Lock(descriptor)


def wait_lock(path: Path, *, shared: bool = False) -> Lock:
    """The lock of a file, after waiting for it in flock(2): for locks that are held for moments."""
    descriptor = _open(path)
    fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    return Lock(descriptor)


def _open(path: Path) -> int:
    # Close-on-exec: a program that outlives its builder must not keep the builder's lock.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
