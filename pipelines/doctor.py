"""What this machine has and lacks for building: each check says what it found and what to do."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pipelines import sandbox
from pipelines.errors import DiskImageError, StoreError
from pipelines.progress import size
from pipelines.scratch import scratch_base
from pipelines.store import Store

PYTHON = (3, 11)
# What a build of a source kernel keeps in the store and writes to its scratch folder, in bytes.
STORE_SPACE = 6 << 30
SCRATCH_SPACE = 4 << 30
_NONE = "nothing"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was looked at, whether it is fine, what was found, and what to do when it isn't."""

    check: str
    ok: bool
    found: str
    to_do: str


def doctor(store: Store) -> list[Check]:
    """Every check that applies to this user, in the order in which a build needs them."""
    checks = [_python(), program("runc", "runc")]
    if os.geteuid() != 0:
        checks += [program("newuidmap", "uidmap"), program("newgidmap", "uidmap")]
        checks += [subordinate_ids("u"), subordinate_ids("g"), user_namespaces()]
    checks += [program("setpriv", "util-linux"), program("unshare", "util-linux"), program("tar", "tar")]
    return [*checks, store_folder(store), scratch(store), program("apt-get", "apt"), program("gpgv", "gpgv")]


def _python() -> Check:
    wanted = ".".join(map(str, PYTHON))
    found = platform.python_version()
    return Check("python", sys.version_info >= PYTHON, found, f"install Python {wanted} or newer")


def program(name: str, package: str) -> Check:
    """Whether a program is there, and where."""
    found = shutil.which(name, path=sandbox.host_path())
    return Check(name, found is not None, found or _NONE, f"apt-get install {package}")


def subordinate_ids(kind: str, folder: Path = Path("/etc")) -> Check:
    """Whether an ordinary user has a range of ids for its sandbox; `kind` is u or g."""
    uid = os.geteuid()
    user = sandbox.user_name(uid)
    label = f"sub{kind}id"
    try:
        ids = sandbox.subordinate(kind, user, uid, folder)
    except DiskImageError as error:
        return Check(label, False, _NONE, error.hint)
    return Check(label, True, f"{ids.count} ids from {ids.start}", sandbox.add_ranges_command(user, folder))


def user_namespaces() -> Check:
    """Whether the kernel lets an ordinary user make a user namespace (user_namespaces(7))."""
    todo = "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000, or build as root"
    try:
        done = subprocess.run(["unshare", "--user", "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return Check("user namespaces", False, "no unshare to try with", "apt-get install util-linux")
    return Check("user namespaces", done.returncode == 0, done.stderr.strip() or "allowed", todo)


def store_folder(store: Store) -> Check:
    """Whether the store can be written, is on a file system that may run programs, and has room."""
    todo = "use another: --store DIR, or DISK_IMAGE_STORE"
    try:
        store.write(store.root / "work" / "doctor", b"")
        (store.root / "work" / "doctor").unlink()
    except (StoreError, OSError) as error:
        return Check("store", False, str(error), todo)
    if os.statvfs(store.root).f_flag & os.ST_NOEXEC:
        return Check("store", False, f"{store.root} is mounted noexec", todo)
    return _space("store", store.root, STORE_SPACE, todo)


def scratch(store: Store) -> Check:
    """Whether stages have room for what they write to /tmp."""
    try:
        base = scratch_base(store)
    except DiskImageError as error:
        return Check("scratch", False, error.what, error.hint)
    if not base.is_dir():
        return Check(
            "scratch", False, f"{base} is not there", "use a store that can be written, or set TMPDIR"
        )
    return _space("scratch", base, SCRATCH_SPACE, "set TMPDIR to a folder on a larger disk")


def _space(label: str, folder: Path, wanted: int, todo: str) -> Check:
    free = shutil.disk_usage(folder).free
    return Check(
        label, free >= wanted, f"{folder}: {size(free)} free", f"free {size(wanted)} there, or {todo}"
    )
