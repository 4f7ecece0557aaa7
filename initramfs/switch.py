"""From the initramfs to the new root, as switch_root(8) does it."""

import os
import stat

from initramfs import libc
from initramfs.refusal import Refused

INIT = "/sbin/init"


def enter(root: str) -> None:
    """Make `root` the root directory and free the memory of the old one, whose files nothing needs any
    more.
    """
    old = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(root)
        clear(old)
        libc.mount(root, "/", flags=libc.MS_MOVE)
        os.chroot(".")
        os.chdir("/")
    finally:
        os.close(old)


def clear(folder: int) -> None:
    """Remove everything below the directory that `folder` is open on, without leaving its file system."""
    device = os.fstat(folder).st_dev
    for name in os.listdir(folder):
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if info.st_dev != device:  # a mount: the new root among them
            continue
        if not stat.S_ISDIR(info.st_mode):
            os.unlink(name, dir_fd=folder)
            continue
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            clear(inner)
            kept = os.listdir(inner)
        finally:
            os.close(inner)
        if not kept:
            os.rmdir(name, dir_fd=folder)


def execute_init() -> None:
    """Become the root's init. Returns never; Refused when the kernel won't run it, which a damaged object
    looks like.
    """
    libc.restore_signals()
    try:
        os.execve(INIT, [INIT], {})
    except OSError as error:
        raise Refused(f"expected {INIT} to start, found: {os.strerror(error.errno or 0)}") from None
