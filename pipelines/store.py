"""The content-addressed store: blobs by sha256, results by key, and the locks between processes.

    blobs/sha256/<2>/<62>        content, mode 0444
    results/<2>/<62>.json        one result a key (records.Record); its mtime is its last use
    last/<plan>/<stage>.json     the key of a stage's newest result, for `explain`
    trees/<sha256>/              tools trees, unpacked (trees.py)
    accelerators/<name>/         scratch that outlives stages and is in no key
    partial/                     downloads that can resume
    logs/<plan>/<stage>.log      the newest log of each stage
    work/<job>/                  running jobs, and everything before it is renamed into place
    locks/                       flock(2): `store` shared by users and exclusive for collecting, one more a
    key

Every entry appears by rename(2), so that a process killed anywhere leaves whole entries and a work folder
whose lock nobody holds; the next one to run something removes it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import IO

from pipelines.definition import OutputKind, canonical_json
from pipelines.errors import StoreError
from pipelines.keys import Content, files_digest
from pipelines.locks import Lock, try_lock, wait_lock
from pipelines.records import Record, Signature, Stored, StoredFile
from pipelines.sources import sha256_file

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOCKED = (errno.EACCES, errno.EPERM, errno.EROFS)


def default_root(environment: Mapping[str, str] = os.environ) -> Path:
    """DISK_IMAGE_STORE, else `disk-image` in $XDG_CACHE_HOME, else in ~/.cache (XDG base directory
    specification).
    """
    if chosen := environment.get("DISK_IMAGE_STORE"):
        return Path(chosen).expanduser()
    if (base := environment.get("XDG_CACHE_HOME", "")) and os.path.isabs(base):
        return Path(base) / "disk-image"
    return Path("~/.cache/disk-image").expanduser()


@dataclass(frozen=True, slots=True)
class Damage:
    """A blob that is not what it was: which, of what output, and expected against found."""

    sha256: str
    output: str
    what: str

    def __str__(self) -> str:
        return f"{self.output}: blob sha256:{self.sha256} {self.what}"


@dataclass(frozen=True, slots=True)
class Last:
    """A stage's newest result: its key, and whether its run gave the outputs of the run before it."""

    key: str
    same_output: bool = False


class Store:
    """One store. Every method raises StoreError when the disk is full, read-only or not ours."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).absolute()
        self.blobs = self.root / "blobs" / "sha256"
        self.partial = self.root / "partial"
        self._verified: dict[str, Signature] = {}

    # Entries

    def blob(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        return self.blobs / sha256[:2] / sha256[2:]

    def result_path(self, key: str) -> Path:
        """Where the result of a key is, or would be."""
        return self.root / "results" / key[:2] / f"{key[2:]}.json"

    def result(self, key: str) -> Record | None:
        """The result stored under a key; None when there is none, or none that can be read."""
        path = self.result_path(key)
        try:
            record = Record.from_bytes(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return record if record.key == key else None

    def touch(self, key: str) -> None:
        """Note the result's use, which keeps it from being collected; in a store that can't be written
        nothing is.
        """
        with _if_writable(), self.guard("noting a result's use"), suppress(FileNotFoundError):
            os.utime(self.result_path(key))

    def save(self, record: Record) -> None:
        """Store a result under its key."""
        self.write(self.result_path(record.key), record.to_bytes())

    def last(self, plan: str, stage: str) -> Last | None:
        """The newest result of a plan's stage."""
        try:
            loaded = json.loads(self._last_path(plan, stage).read_bytes())
            return Last(str(loaded["key"]), bool(loaded["same_output"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def set_last(self, plan: str, stage: str, last: Last) -> None:
        """Remember a stage's newest result, in a store that can be written."""
        with _if_writable():
            self.write(
                self._last_path(plan, stage),
                canonical_json({"key": last.key, "same_output": last.same_output}),
            )

    def write(self, path: Path, data: bytes) -> None:
        """Put a small file in place, whole or not at all."""
        with self.guard(f"writing {path.name}"):
            temporary = self.root / "work" / f"{token_hex(8)}.part"
            temporary.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

    # Content

    def ingest(self, path: Path, kind: OutputKind) -> tuple[Stored, dict[str, Signature]]:
        """Take a stage's output (a file, or a folder of plain files) from a work folder into the store.

        Raises ValueError for an output that is missing or holds anything but plain files.
        """
        if kind is OutputKind.FILE:
            sha256, signature = self._ingest_file(path)
            return Stored(Content(kind, sha256), signature.size), {sha256: signature}
        if not path.is_dir() or path.is_symlink():
            raise ValueError(f"{path.name}: expected a folder of plain files, found {_kind_of(path)}")
        files: list[StoredFile] = []
        signatures: dict[str, Signature] = {}
        for folder, folders, names in os.walk(path):
            # a link to a folder stands among the folders; it is refused as a file
            for name in [*names, *(name for name in folders if os.path.islink(os.path.join(folder, name)))]:
                file = Path(folder, name)
                relative = file.relative_to(path).as_posix()
                sha256, signature = self._ingest_file(file)
                signatures[sha256] = signature
                files.append(StoredFile(relative, sha256, signature.size))
        files.sort(key=lambda file: file.path.encode())
        digest = files_digest((file.path, file.sha256) for file in files)
        return Stored(Content(kind, digest), sum(file.size for file in files), tuple(files)), signatures

    def damages(
        self, record: Record, outputs: Mapping[str, Stored] | None = None, *, read: bool
    ) -> list[Damage]:
        """What is wrong with a result's outputs (all, or those given).

        Compares size, mtime and inode with the record; `read` also hashes what this process has not hashed
        yet. A blob with another inode but the right bytes is taken as it is now.
        """
        found: list[Damage] = []
        moved: dict[str, Signature] = {}
        for name, stored in (outputs or record.outputs).items():
            for sha256, size in stored.blobs():
                label = f"{record.stage}.{name}"
                try:
                    signature = Signature.of(os.lstat(self.blob(sha256)))
                except FileNotFoundError:
                    found.append(Damage(sha256, label, "is missing"))
                    continue
                if signature.size != size:
                    found.append(Damage(sha256, label, f"has {signature.size} bytes, expected {size}"))
                    continue
                intact = signature == record.signatures[sha256]
                if self._verified.get(sha256) != signature and (read or not intact):
                    actual = sha256_file(self.blob(sha256))
                    if actual != sha256:
                        found.append(Damage(sha256, label, f"holds bytes with sha256:{actual}"))
                        continue
                    self._verified[sha256] = signature
                if not intact:
                    moved[sha256] = signature
        if moved and not found:
            self._resign(record, moved)
        return found

    def discard(self, sha256: str) -> None:
        """Remove a blob."""
        self._verified.pop(sha256, None)
        with self.guard("removing a blob"):
            self.blob(sha256).unlink(missing_ok=True)

    def link(self, stored: Stored, target: Path) -> None:
        """Put an output's content at `target` as hard links to its blobs, or as copies on another file
        system.

        For `files`, `target` becomes a folder. The blobs are read-only (0444): links share that.
        """
        with self.guard(f"writing {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            if stored.content.kind is OutputKind.FILE:
                link_or_copy(self.blob(stored.content.digest), target)
                return
            target.mkdir()
            made = {target}
            for file in stored.files:
                path = target / file.path
                if path.parent not in made:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    made.add(path.parent)
                link_or_copy(self.blob(file.sha256), path)

    def _ingest_file(self, path: Path) -> tuple[str, Signature]:
        if not path.is_file() or path.is_symlink():
            raise ValueError(f"{path.name}: expected a plain file, found {_kind_of(path)}")
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{path.name!r}: expected a name in UTF-8") from None
        sha256 = sha256_file(path)
        blob = self.blob(sha256)
        with self.guard("keeping a result"):
            if blob.exists() and self._intact(sha256):
                return sha256, self._verified[sha256]
            blob.parent.mkdir(parents=True, exist_ok=True)
            status = path.lstat()
            if status.st_nlink > 1 or status.st_uid != os.geteuid():
                # Someone else's name for these bytes could still change them.
                copy = path.with_name(f".{path.name}.{token_hex(4)}")
                shutil.copyfile(path, copy)
                path = copy
            path.chmod(0o444)
            path.replace(blob)
            signature = Signature.of(blob.lstat())
        self._verified[sha256] = signature
        return sha256, signature

    def _intact(self, sha256: str) -> bool:
        signature = Signature.of(self.blob(sha256).lstat())
        if self._verified.get(sha256) != signature:
            if sha256_file(self.blob(sha256)) != sha256:
                return False
            self._verified[sha256] = signature
        return True

    def _resign(self, record: Record, moved: Mapping[str, Signature]) -> None:
        with _if_writable():
            self.save(replace(record, signatures={**record.signatures, **moved}))

    def _last_path(self, plan: str, stage: str) -> Path:
        return self.root / "last" / plan / f"{stage}.json"

    # Locks and work

    def lock(self, name: str) -> Lock | None:
        """Take a lock without waiting; None when another process (or another holder in this one) has it."""
        path = self.root / "locks" / name
        with self.guard(f"locking {name}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            return try_lock(path)

    @contextmanager
    def use(self, *, writing: bool = True) -> Iterator[Store]:
        """Hold the store while its entries are used, so that nothing is collected meanwhile.

        With `writing` False a store that can't be written, or isn't there, is used as it is.
        """
        held: Lock | None = None
        with nullcontext() if writing else _if_writable(), self.guard("using the store"):
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            # Only collecting excludes users, and it is short.
            held = wait_lock(self.root / "locks" / "store", shared=True)
        try:
            yield self
        finally:
            if held is not None:
                held.release()

    def open_log(self, plan: str, stage: str) -> IO[bytes]:
        """A new log for a stage, in place of its last one."""
        path = self.log_path(plan, stage)
        with self.guard("writing a log"):
            path.parent.mkdir(parents=True, exist_ok=True)
            # A new file, so that another build's open log is not cut off.
            path.unlink(missing_ok=True)
            return path.open("wb")

    def log_path(self, plan: str, stage: str) -> Path:
        """Where a stage's newest log is."""
        return self.root / "logs" / plan / f"{stage}.log"

    @contextmanager
    def guard(self, doing: str) -> Iterator[None]:
        """Turn what the disk refuses into a StoreError that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self.full(doing) from error
            if error.errno in _LOCKED:
                raise StoreError(
                    f"{self.root}: the store can't be written ({error.strerror}) while {doing}",
                    "make it writable for this user, or use another: --store DIR (or DISK_IMAGE_STORE)",
                ) from error
            raise

    def full(self, doing: str) -> StoreError:
        """The error for a full disk; finished results stay."""
        free = shutil.disk_usage(
            next(path for path in (self.root, *self.root.parents) if path.exists())
        ).free
        return StoreError(
            f"{self.root}: no space left ({free // 1024} KiB free) while {doing}",
            "free some space, or: disk-image cache gc --max-size GIB, or --store DIR on a larger disk; "
            "what is finished is kept",
        )


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, or a copy where file systems differ, forbid links, or have no more links to give."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)
        target.chmod(0o444)


@contextmanager
def _if_writable() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _LOCKED:
            raise


def _kind_of(path: Path) -> str:
    if path.is_symlink():
        return "a symbolic link"
    if path.is_dir():
        return "a folder"
    return "nothing" if not path.exists() else "a device, socket or fifo"
