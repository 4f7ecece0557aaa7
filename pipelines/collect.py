"""Keep the store small and right: collect what was not used for long, check that every entry is what it
was.
"""

from __future__ import annotations

import os
import stat
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.definition import OutputKind
from pipelines.errors import StoreError
from pipelines.locks import Lock
from pipelines.records import Record
from pipelines.sandbox import MOUNT_POINTS
from pipelines.scratch import remove_tree, sweep
from pipelines.sources import sha256_file
from pipelines.store import Store

DEFAULT_MAX_AGE = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed and kept; sizes in bytes."""

    removed: int
    freed: int
    kept: int
    size: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong entry: what it is, what is wrong with it, and what to do."""

    entry: str
    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.entry}: {self.what}"


def collect(
    store: Store, *, max_age: float = DEFAULT_MAX_AGE, max_size: int | None = None, now: float | None = None
) -> Collected:
    """Remove results whose last use is older than `max_age` seconds, then the least recently used until the
    blobs take at most `max_size` bytes; then everything that no result needs. Raises StoreError while a
    build uses the store.
    """
    now = time.time() if now is None else now
    with _alone(store), store.guard("collecting"):
        sweep(store)
        results = sorted(_results(store), key=lambda one: one[1])
        total = len(results)
        results = [one for one in results if now - one[1] <= max_age]
        sizes = _blob_sizes(store)
        before = sum(sizes.values())
        while max_size is not None and results and _size(results, sizes) > max_size:
            results.pop(0)
        kept = {store.result_path(record.key) for record, _ in results}
        for path in (store.root / "results").rglob("*.json"):
            if path not in kept:
                path.unlink()
        needed = _needed(results)
        for sha256 in sizes:
            if sha256 not in needed:
                store.discard(sha256)
        _collect_trees(store, results)
        _collect_old(store, now - max_age)
        return Collected(
            total - len(results), before - _size(results, sizes), len(results), _size(results, sizes)
        )


def check(store: Store, *, repair: bool = False) -> list[Problem]:
    """Read every entry and name what is wrong; `repair` removes it, so that the stage that made it runs
    again.

    Raises StoreError when `repair` is asked for while a build uses the store.
    """
    if repair:
        with _alone(store), store.guard("repairing"):
            return list(_check(store, repair=True))
    with store.use(writing=False):
        return list(_check(store, repair=False))


def _check(store: Store, *, repair: bool) -> Iterator[Problem]:
    users: dict[str, list[tuple[Record, str]]] = {}
    for path in sorted((store.root / "results").rglob("*.json")):
        record = store.result(path.parent.name + path.stem)
        if record is None:
            yield Problem(f"result {path.parent.name}{path.stem}", "can't be read", _hint(repair))
            if repair:
                path.unlink()
            continue
        for name, stored in record.outputs.items():
            for sha256, _ in stored.blobs():
                users.setdefault(sha256, []).append((record, name))
    present = _blob_sizes(store)
    for sha256 in sorted({*users, *present}):
        used = users.get(sha256, [])
        wrong = _blob_problem(store, sha256) if sha256 in present else "is missing"
        if wrong is None:
            continue
        user = f"{used[0][0].stage}.{used[0][1]}" if used else "of no result"
        yield Problem(f"blob sha256:{sha256} ({user})", wrong, _hint(repair))
        if repair:
            store.discard(sha256)
            # Without its result the stage runs again as soon as anything needs it.
            for record, _ in used:
                store.result_path(record.key).unlink(missing_ok=True)
    for tree in sorted(_folders(store.root / "trees")):
        wrong = _tree_problem(store, tree)
        if wrong is not None:
            yield Problem(f"tree sha256:{tree.name}", wrong, _hint(repair))
            if repair:
                remove_tree(tree)


def _blob_problem(store: Store, sha256: str) -> str | None:
    actual = sha256_file(store.blob(sha256))
    return None if actual == sha256 else f"holds bytes with sha256:{actual}"


def _tree_problem(store: Store, tree: Path) -> str | None:
    """The first difference between an unpacked tree and its tar; None when there is none."""
    tar = store.blob(tree.name)
    if not tar.exists() or sha256_file(tar) != tree.name:
        return "can't be compared: its tar is not in the store"
    seen = {"."}
    with tarfile.open(tar) as archive:
        for member in archive:
            name = os.path.normpath(member.name)
            seen.add(name)
            if (wrong := _entry_problem(archive, member, tree / name)) is not None:
                return f"{name}: {wrong}"
    for folder, folders, names in os.walk(tree):
        for name in (*folders, *names):
            found = os.path.relpath(os.path.join(folder, name), tree)
            if found not in seen and found not in MOUNT_POINTS:
                return f"{found}: expected nothing"
    return None


def _entry_problem(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> str | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return "is missing"
    is_expected = stat.S_ISLNK if member.issym() else stat.S_ISDIR if member.isdir() else stat.S_ISREG
    if not is_expected(status.st_mode):
        return "has another type"
    if member.issym():
        return None if os.readlink(path) == member.linkname else f"leads to {os.readlink(path)}"
    if stat.S_IMODE(status.st_mode) != member.mode & 0o7777:
        return f"expected mode {member.mode & 0o7777:04o}, found {stat.S_IMODE(status.st_mode):04o}"
    if member.isreg() or member.islnk():
        content = archive.extractfile(member)
        assert content is not None
        with path.open("rb") as stream:
            while chunk := content.read(1 << 20):
                if stream.read(len(chunk)) != chunk:
                    return "has other content"
            if stream.read(1):
                return "has other content"
    return None


def _alone(store: Store) -> Lock:
    lock = store.lock("store")
    if lock is None:
        raise StoreError(
            f"{store.root}: a build uses the store", "run the same command again when the build has ended"
        )
    return lock


def _results(store: Store) -> Iterator[tuple[Record, float]]:
    """Every readable result with its last use, in seconds since the epoch."""
    for path in (store.root / "results").rglob("*.json"):
        record = store.result(path.parent.name + path.stem)
        if record is not None:
            yield record, path.stat().st_mtime


def _needed(results: list[tuple[Record, float]]) -> set[str]:
    return {sha256 for record, _ in results for sha256 in record.signatures}


def _size(results: list[tuple[Record, float]], sizes: dict[str, int]) -> int:
    return sum(sizes.get(sha256, 0) for sha256 in _needed(results))


def _blob_sizes(store: Store) -> dict[str, int]:
    """The size in bytes of every blob by its sha256."""
    sizes: dict[str, int] = {}
    for folder in _folders(store.blobs):
        for entry in os.scandir(folder):
            sizes[folder.name + entry.name] = entry.stat(follow_symlinks=False).st_size
    return sizes


def _folders(path: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(path) if entry.is_dir()] if path.is_dir() else []


def _collect_trees(store: Store, results: list[tuple[Record, float]]) -> None:
    tars = {
        stored.content.digest
        for record, _ in results
        for stored in record.outputs.values()
        if stored.content.kind is OutputKind.FILE
    }
    for tree in _folders(store.root / "trees"):
        if tree.name not in tars:
            remove_tree(tree)


def _collect_old(store: Store, before: float) -> None:
    """Partial downloads, logs, plans and accelerators that nobody used since, and all locks."""
    for name in ("partial", "logs", "plans"):
        for folder, _, names in os.walk(store.root / name):
            for path in (Path(folder, name) for name in names):
                if path.lstat().st_mtime < before:
                    path.unlink()
    for path in _folders(store.root / "accelerators"):
        if path.stat().st_mtime < before:
            remove_tree(path)
    # Nobody else holds the store, so nobody waits for one of these.
    for path in (store.root / "locks").iterdir():
        if path.name not in ("store", "work"):
            path.unlink()


def _hint(repair: bool) -> str:
    return (
        "removed: the next build that needs it makes it again"
        if repair
        else "disk-image cache check --repair"
    )
