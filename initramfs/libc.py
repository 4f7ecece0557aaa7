"""System calls that Python's os module lacks, through the C library: mount(2), umount(2), init_module(2),
reboot(2), syslog(2).

The library's functions are used rather than call numbers, which differ between architectures. Each raises
OSError.
"""

import ctypes
import os

# <sys/mount.h>
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_MOVE = 8192
_MNT_DETACH = 2
# <linux/reboot.h>
_RB_POWER_OFF = 0x4321FEDC
# SYSLOG_ACTION_* of syslog(2)
_CONSOLE_OFF, _CONSOLE_ON = 6, 7
# <signal.h>: Python ignores these two; a program that it executes must find the default again.
_IGNORED_BY_PYTHON = (13, 25)  # SIGPIPE, SIGXFSZ

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p,) * 3 + (ctypes.c_ulong, ctypes.c_char_p)
_libc.init_module.argtypes = (ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.signal.restype = ctypes.c_void_p


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2); the error names type, source and target."""
    failed = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, flags, options.encode() or None
    )
    _check(failed, f"mount {kind or 'move'} {source} on {target}")


def detach(target: str) -> None:
    """Take a mount out of the tree; the kernel drops it when its last user (an overlay's layer, say)
    goes.
    """
    _check(_libc.umount2(target.encode(), _MNT_DETACH), f"unmount {target}")


def load_module(image: bytes) -> None:
    """init_module(2) with an uncompressed .ko and no parameters."""
    _check(_libc.init_module(image, len(image), b""), "init_module")


def drain(fd: int) -> None:
    """Wait until a terminal has sent what was written to it (tcdrain(3)); other files are left alone."""
    _libc.tcdrain(fd)


def quiet_kernel(quiet: bool) -> None:
    """Keep kernel messages off the console, or let them on again (syslog(2)); they are logged all the
    same.
    """
    _libc.klogctl(_CONSOLE_OFF if quiet else _CONSOLE_ON, None, 0)


def restore_signals() -> None:
    """Undo what Python's start changed, for the program that is executed next (signal(7): ignored stays
    ignored).
    """
    for number in _IGNORED_BY_PYTHON:
        _libc.signal(number, None)


def power_off() -> None:
    """reboot(2): only PID 1 of the machine's own namespace gets here with effect."""
    _check(_libc.reboot(_RB_POWER_OFF), "power off")


def _check(failed: int, what: str) -> None:
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
