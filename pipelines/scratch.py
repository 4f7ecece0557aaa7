"""Work folders of running jobs: made under a lock, removed after the job, or by the next run when its
process died.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from pipelines.errors import StoreError
from pipelines.locks import Lock, try_lock, wait_lock
from pipelines.sandbox import delete_containers, user_mapping
from pipelines.store import Store

# A package installation takes 1 GiB, a kernel tree with its objects 2 GiB, and both may run at once.
ENOUGH_SHARED_MEMORY = 4 << 30
ENOUGH_FREE_MEMORY = 8 << 30
# A small file is in work/ for less than a second; one this old (in seconds) belongs to a dead process.
_STALE_PART = 3600
_LOCK, _SCRATCH = "lock", "scratch"


@dataclass(frozen=True, slots=True)
class Work:
    """A job's private folder on the store's file system, and its scratch folder (the sandbox's /tmp)."""

    folder: Path
    scratch: Path

    @property
    def name(self) -> str:
        """The folder's name, which is also the container's id."""
        return self.folder.name


def scratch_base(
    store: Store, environment: Mapping[str, str] = os.environ, shared_memory: Path = Path("/dev/shm")
) -> Path:
    """Where scratch goes: $TMPDIR when set, else a roomy /dev/shm on tmpfs, else the store's work folder."""
    if chosen := environment.get("TMPDIR"):
        base = Path(chosen)
        if not os.access(base, os.W_OK | os.X_OK):
            raise StoreError(
                f"TMPDIR={chosen}: not a folder this user can write", "set TMPDIR to one, or unset it"
            )
        return base.absolute()
    if is_tmpfs(shared_memory) and os.access(shared_memory, os.W_OK | os.X_OK):
        status = os.statvfs(shared_memory)
        free = status.f_bavail * status.f_frsize
        if (
            not status.f_flag & os.ST_NOEXEC
            and free >= ENOUGH_SHARED_MEMORY
            and free_memory() >= ENOUGH_FREE_MEMORY
        ):
            return shared_memory
    return store.root / "work"


def is_tmpfs(path: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether a tmpfs is mounted at exactly this path (proc_pid_mounts(5))."""
    last = ""
    for line in mounts.read_text().splitlines():
        _, where, kind, *_ = line.split(" ")
        if where == str(path):
            last = kind
    return last == "tmpfs"


def free_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """MemAvailable in bytes (proc_meminfo(5))."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def work_folder(store: Store, label: str, base: Path) -> Iterator[Work]:
    """A new work folder, removed at the end; whatever still runs in it is killed first."""
    name = f"{label}-{token_hex(6)}"
    folder = store.root / "work" / name
    scratch = base / f"disk-image-{name}"
    with store.guard("making a work folder"):
        with _mutex(store):
            folder.mkdir()
            lock = try_lock(folder / _LOCK)
            assert lock is not None, "a new file has no other holder"
        # Noted before it is made: what exists is always known.
        (folder / _SCRATCH).write_text(str(scratch))
        scratch.mkdir(mode=0o700)
        (scratch / "tmp").mkdir()
        (scratch / "tmp").chmod(0o1777)
    try:
        yield Work(folder, scratch / "tmp")
    finally:
        _remove(folder)
        lock.release()


def sweep(store: Store) -> list[str]:
    """Remove the work of dead processes, their containers first; gives the names of what was removed."""
    stale: list[tuple[Path, Lock]] = []
    with store.guard("removing a dead job's work"):
        with _mutex(store):
            for path in sorted((store.root / "work").iterdir()):
                if path.suffix == ".part" and time.time() - path.lstat().st_mtime > _STALE_PART:
                    path.unlink()
                elif path.is_dir() and (lock := try_lock(path / _LOCK)) is not None:
                    stale.append((path, lock))
        for path, lock in stale:
            _remove(path)
            lock.release()
    return [path.name for path, _ in stale]


def remove_tree(path: Path) -> None:
    """Remove a folder, also where its files belong to the user's subordinate ids or its folders are
    read-only.
    """
    if not path.is_dir():
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        if os.geteuid() == 0:
            raise
        # Root of the user's own namespace may; see unshare(1).
        subprocess.run(["unshare", *user_mapping(), "--", "rm", "-rf", "--", str(path)], check=False)
        if path.exists():
            raise


def _remove(folder: Path) -> None:
    delete_containers(folder)
    try:
        scratch = Path((folder / _SCRATCH).read_text())
    except FileNotFoundError:
        scratch = None
    if scratch is not None and scratch.name == f"disk-image-{folder.name}":
        remove_tree(scratch)
    # The lock's file goes last, so that a removal cut short is found again.
    for path in folder.iterdir():
        if path.name != _LOCK:
            remove_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    remove_tree(folder)


@contextmanager
def _mutex(store: Store) -> Iterator[None]:
    (store.root / "work").mkdir(parents=True, exist_ok=True)
    (store.root / "locks").mkdir(exist_ok=True)
    with wait_lock(store.root / "locks" / "work"):
        yield
