"""Loading the kernel modules that the build put into the initramfs, in the order it computed."""

import errno
import os

from initramfs import libc
from initramfs.refusal import Refused

ORDER = "order"


def load_all(folder: str) -> None:
    """Load the files named in `folder`/order, one a line, dependencies first. No such file: the kernel needs
    none.

    Refused when the kernel takes one of them back; a module that is already there is fine.
    """
    try:
        names = _read(os.path.join(folder, ORDER)).decode().split()
    except FileNotFoundError:
        return
    for name in names:
        try:
            libc.load_module(_read(os.path.join(folder, name)))
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise Refused(
                    f"kernel module {name} can't be loaded: {os.strerror(error.errno or 0)}"
                ) from None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
