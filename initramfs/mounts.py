"""The mounts between the disk and the new root.

    /layers/disk       the disk, ext4, read-only: composefs/images, composefs/objects, all with fs-verity
    /layers/metadata   the metadata image, erofs, read from a file of the disk
    /layers/writes     tmpfs: what the running system writes
    /sysroot           one overlay of the three

Overlayfs options: Linux Documentation/filesystems/overlayfs.rst («Data-only lower layers», «fs-verity
support»).
"""

import errno
import os
import stat

from initramfs import libc, verity
from initramfs.refusal import Refused

SYSTEM = ("/proc", "/sys", "/dev")
DISK, METADATA, WRITES, ROOT = "/layers/disk", "/layers/metadata", "/layers/writes", "/sysroot"
_OBJECTS = DISK + "/composefs/objects"
_IMAGES = "composefs/images"
_INERT = libc.MS_NODEV | libc.MS_NOSUID | libc.MS_NOEXEC


def mount_system() -> None:
    """/proc, /sys and /dev: what the next steps read."""
    for path, kind in zip(SYSTEM, ("proc", "sysfs", "devtmpfs"), strict=True):
        if not os.path.ismount(path):  # a kernel may have mounted /dev itself
            libc.mount(
                kind,
                path,
                kind,
                libc.MS_NOSUID | (0 if kind == "devtmpfs" else libc.MS_NODEV | libc.MS_NOEXEC),
            )


def mount_disk(device: str) -> None:
    """Read-only, and nothing on it is a device or a program of its own."""
    libc.mount(device, DISK, "ext4", libc.MS_RDONLY | _INERT)


def mount_metadata(digest: str) -> None:
    """Measure the metadata image and mount the very file that was measured.

    One descriptor serves both: between the two, no other file can take the path's place.
    """
    fd = open_image(DISK, digest)
    try:
        verity.require(fd, digest)
        libc.mount(f"/proc/self/fd/{fd}", METADATA, "erofs", libc.MS_RDONLY | _INERT)
    except OSError as error:
        if error.errno == errno.ENOTBLK:
            raise Refused("expected a kernel with EROFS_FS_BACKED_BY_FILE, found one without it") from None
        raise
    finally:
        os.close(fd)


def open_image(disk: str, digest: str) -> int:
    """A descriptor of `disk`/composefs/images/<digest>.cfs; Refused when it is not there or no plain
    file.
    """
    folder = os.path.join(disk, _IMAGES)
    name = f"{digest}.cfs"
    try:
        fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        there = ", ".join(sorted(os.listdir(folder))[:3]) if os.path.isdir(folder) else "no such folder"
        raise Refused(f"expected the metadata image {name} on the disk, found {there or 'none'}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused(f"expected the metadata image {name} to be a plain file, found another kind")
    return fd


def mount_root() -> None:
    """One overlay does both: `verity=require` makes the kernel refuse every object whose digest is not the
    one that the metadata image names, and the upper layer takes what is written.
    """
    libc.mount("tmpfs", WRITES, "tmpfs", libc.MS_NODEV, "mode=0755")
    upper, work = WRITES + "/upper", WRITES + "/work"
    os.mkdir(work)
    os.mkdir(upper)
    # An overlay's root has the upper layer's owner and mode.
    lower = os.stat(METADATA)
    os.chown(upper, lower.st_uid, lower.st_gid)
    os.chmod(upper, stat.S_IMODE(lower.st_mode))
    layers = f"lowerdir={METADATA}::{_OBJECTS},upperdir={upper},workdir={work}"
    libc.mount("disk-image", ROOT, "overlay", 0, f"{layers},metacopy=on,redirect_dir=on,verity=require")


def leave_layers() -> None:
    """Take the layers out of sight; the overlay holds them."""
    for layer in (WRITES, METADATA, DISK):
        libc.detach(layer)


def move_system() -> None:
    """/proc, /sys and /dev go along into the new root."""
    for path in SYSTEM:
        target = ROOT + path
        if not os.path.isdir(target) or os.path.islink(target):
            raise Refused(f"expected the directory {path} in the root, found none")
        libc.mount(path, target, flags=libc.MS_MOVE)
