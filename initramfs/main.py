"""PID 1 of the initramfs: eight steps from the kernel's hand-over to the root's own init.

    1  mount /proc, /sys and /dev
    2  load the kernel modules
    3  read the root's digest from the command line
    4  find the disk and mount it read-only
    5  measure the metadata image, compare, mount it
    6  mount the root: metadata, verified objects and a writable layer
    7  say so on the console
    8  enter the root and become its init

It fails closed: whatever goes wrong is said in one line, and the machine is powered off. There is no shell.
"""

import os

from initramfs import cmdline, disk, kernel_modules, libc, mounts, switch
from initramfs.refusal import Refused

MODULES = "/usr/lib/disk-image/modules"
WAIT_SECONDS = 10.0


def main() -> None:
    """Boot, or refuse and power off; never returns to the kernel, which would panic."""
    try:
        boot()
    except BaseException as error:
        say(f"refused: {why(error)}")
        libc.power_off()


def boot() -> None:
    """The steps; an exception ends them."""
    mounts.mount_system()  # 1
    kernel_modules.load_all(MODULES)  # 2
    with open("/proc/cmdline") as file:
        digest = cmdline.root_digest(file.read())  # 3
    mounts.mount_disk(disk.find("/sys/class/block", "/dev", WAIT_SECONDS))  # 4
    mounts.mount_metadata(digest)  # 5
    mounts.mount_root()  # 6
    say(f"root verified sha256:{digest}")  # 7
    mounts.leave_layers()  # 8
    mounts.move_system()
    switch.enter(mounts.ROOT)
    switch.execute_init()


def say(text: str) -> None:
    """One line on the console, sent before this returns. A machine without a console boots all the same."""
    try:
        fd = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return
    # Kernel messages are written past the terminal's buffer and would land in the middle of the line.
    libc.quiet_kernel(True)
    try:
        # A line of its own, whatever the kernel or the firmware left on the current one.
        os.write(fd, f"\r\ndisk-image: {text}\r\n".encode())
        libc.drain(fd)
    finally:
        libc.quiet_kernel(False)
        os.close(fd)


def why(error: BaseException) -> str:
    """The failure in one line."""
    if isinstance(error, Refused):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())
