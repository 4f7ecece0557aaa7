"""What the kernel says a file's fs-verity digest is.

FS_IOC_MEASURE_VERITY, struct fsverity_digest: Linux Documentation/filesystems/fsverity.rst. From the moment
a file is opened, the kernel checks every block it reads of it against this digest.
"""

import errno
import fcntl
import os
import struct

from initramfs.refusal import Refused

# _IOWR('f', 134, struct fsverity_digest) with the ioctl encoding of <asm-generic/ioctl.h>
_MEASURE = 0xC0046686
_HEADER = struct.Struct("=HH")  # digest_algorithm, digest_size
_MOST = 64
_ALGORITHMS = {1: "sha256", 2: "sha512"}


def measure(fd: int) -> str:
    """`<algorithm>:<hex>` of an open file; Refused when it has no verity or the kernel can't tell."""
    buffer = bytearray(_HEADER.pack(0, _MOST) + bytes(_MOST))
    try:
        fcntl.ioctl(fd, _MEASURE, buffer, True)
    except OSError as error:
        if error.errno == errno.ENODATA:
            raise Refused("expected fs-verity on the metadata image, found a file without it") from None
        number = error.errno or errno.EIO
        raise Refused(f"the metadata image's fs-verity can't be measured: {os.strerror(number)}") from None
    algorithm, size = _HEADER.unpack_from(buffer)
    digest = buffer[_HEADER.size : _HEADER.size + size].hex()
    return f"{_ALGORITHMS.get(algorithm, f'algorithm {algorithm}')}:{digest}"


def require(fd: int, digest: str) -> None:
    """Refused unless the file's digest is sha256 and equals `digest` (hex)."""
    found = measure(fd)
    if found != f"sha256:{digest}":
        raise Refused(f"the metadata image is another one: expected sha256:{digest}, found {found}")
