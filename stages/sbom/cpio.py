"""Reading the newc cpio archive that the initramfs stage writes (stages/initramfs/newc.py)."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from stages.shared.job import Failure

_MAGIC = b"070701"
_HEADER = 110
_LAST = "TRAILER!!!"


def files(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of every regular file and symbolic link. Raises Failure for anything but one whole
    archive.
    """
    at = 0
    while True:
        header = archive[at : at + _HEADER]
        if len(header) != _HEADER or not header.startswith(_MAGIC):
            raise _damaged(f"no newc header at byte {at}")
        try:
            mode, size, length = (int(header[start : start + 8], 16) for start in (14, 54, 94))
        except ValueError:
            raise _damaged(f"no hex number in the header at byte {at}") from None
        # Header and name together, and the content, are padded to four bytes.
        content = at + _HEADER + length
        content += -content % 4
        name = archive[at + _HEADER : at + _HEADER + length].rstrip(b"\0").decode("utf-8", "replace")
        if content + size > len(archive):
            raise _damaged(f"{name!r} ends after the archive")
        if name == _LAST:
            return
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            yield name, archive[content : content + size]
        at = content + size + -size % 4


def _damaged(why: str) -> Failure:
    return Failure(f"initramfs: {why}", "build the initramfs again")
