"""Finding the disk: the block device whose ext4 file system has the label `disk-image`.

Superblock: Linux Documentation/filesystems/ext4/super.rst. The label is only how the disk is found; what is
on it is believed only as far as the command line's digest vouches for it.
"""

import os
import struct
import time

from initramfs.refusal import Refused

LABEL = b"disk-image"
_OFFSET, _SIZE = 1024, 1024
_MAGIC_AT, _MAGIC = 0x38, 0xEF53
_RO_COMPAT_AT, _VERITY = 0x64, 0x8000
_LABEL_AT, _LABEL_SIZE = 0x78, 16
_PAUSE_SECONDS = 0.02


def find(block: str, dev: str, wait_seconds: float) -> str:
    """The device's path below `dev`; `block` is /sys/class/block. Devices may appear late: waits up to
    `wait_seconds`.

    Refused when none appears, or when several carry the label.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        names = sorted(os.listdir(block)) if os.path.isdir(block) else []
        found = [path for path in (os.path.join(dev, name) for name in names) if _label(path) == LABEL]
        if len(found) == 1:
            return found[0]
        label = LABEL.decode()
        if found:
            raise Refused(f"expected one disk with the label {label}, found {', '.join(found)}")
        if time.monotonic() >= deadline:
            seen = ", ".join(names) or "none"
            raise Refused(
                f"expected a disk with the label {label} within {wait_seconds:g} s, found only: {seen}"
            )
        time.sleep(_PAUSE_SECONDS)


def _label(path: str) -> bytes:
    """The label of an ext4 file system with the verity feature; empty for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # no medium, no node yet: not our disk now
        return b""
    try:
        superblock = os.pread(fd, _SIZE, _OFFSET)
    except OSError:
        return b""
    finally:
        os.close(fd)
    if len(superblock) < _SIZE or struct.unpack_from("<H", superblock, _MAGIC_AT)[0] != _MAGIC:
        return b""
    if not struct.unpack_from("<I", superblock, _RO_COMPAT_AT)[0] & _VERITY:
        return b""
    return superblock[_LABEL_AT : _LABEL_AT + _LABEL_SIZE].rstrip(b"\0")
