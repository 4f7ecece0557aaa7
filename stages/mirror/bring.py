"""One locked file from the first place that has it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stages.mirror.client import Client
from stages.mirror.download import LIMITS, Download, Gone, Limits, Mismatch, Unusable
from stages.mirror.locked import Locked
from stages.shared.job import Failure, progress


class Outcome(StrEnum):
    """How it ended; the value is the failure's code."""

    BROUGHT = "brought"
    GONE = "gone"
    MISMATCH = "mismatch"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Brought:
    """The end of one file, and why it is missing if it is."""

    file: Locked
    outcome: Outcome
    why: str = ""


class Bringer:
    """The places of one run. `total` is the bytes of all files, for the progress."""

    def __init__(
        self,
        *,
        store: Path,
        pools: Sequence[Path],
        archives: Sequence[str],
        partial: Path,
        total: int,
        limits: Limits = LIMITS,
    ) -> None:
        self._store = store
        self._pools = pools
        self._archives = archives
        self._partial = partial
        self._limits = limits
        self._progress = _Progress(total)
        self._unusable: dict[str, str] = {}
        self._threads = threading.local()
        self._clients: list[Client] = []
        partial.mkdir(parents=True, exist_ok=True)

    def bring(self, file: Locked, target: Path) -> Brought:
        """Put the file at `target`, as a hard link where that works. Never raises for what a place did."""
        wrong: list[str] = []
        unusable: list[str] = []
        for path in self._candidates(file):
            found = self._take(file, path, target)
            if found is None:
                return Brought(file, Outcome.BROUGHT)
            wrong.append(f"{path}: {found}")
        for archive in self._archives:
            if (root := _directory(archive)) is not None:
                path = root / file.pool_path
                if path.is_file():
                    found = self._take(file, path, target)
                    if found is None:
                        return Brought(file, Outcome.BROUGHT)
                    wrong.append(f"{path}: {found}")
                elif not root.is_dir():
                    unusable.append(f"{root}: no such directory")
                continue
            if archive in self._unusable:
                unusable.append(self._unusable[archive])
                continue
            partial = self._partial / file.sha256
            download = Download(archive, file, partial, self._client(), self._limits, self._progress.at)
            try:
                download.run(target)
                return Brought(file, Outcome.BROUGHT)
            except Mismatch as error:
                wrong.append(str(error))
            except Unusable as error:
                # Not asked again in this run: a host that is down would cost every file its tries.
                self._unusable[archive] = str(error)
                unusable.append(str(error))
            except Gone:
                continue
        for each in (*wrong, *unusable):
            print(f"{file}: {each}", flush=True)
        if wrong:
            return Brought(file, Outcome.MISMATCH, f"{file}: {wrong[-1]}")
        if unusable:
            return Brought(file, Outcome.UNUSABLE, f"{file}: {unusable[-1]}")
        places = len(self._archives)
        return Brought(
            file,
            Outcome.GONE,
            f"{file}: in no store or pool, and gone from {places} archive(s): {file.pool_path}",
        )

    def close(self) -> None:
        """Close what connections are open."""
        for client in self._clients:
            client.drop()

    def forget_downloads(self, files: Sequence[Locked]) -> None:
        """Remove what was downloaded: the output holds it now."""
        for file in files:
            (self._partial / file.sha256).unlink(missing_ok=True)

    def _candidates(self, file: Locked) -> Iterator[Path]:
        """Local paths that exist and may be the file."""
        blob = Path(file.sha256[:2], file.sha256[2:])
        epoch_name = (
            f"{file.name}_{file.version.replace(':', '%3a')}_{file.arch}.deb"  # as apt's own cache names it
        )
        names = (
            file.pool_path,
            os.path.basename(file.pool_path),
            epoch_name,
            file.sha256,
            blob,
            f"blobs/sha256/{file.sha256}",
        )
        for path in (self._store / blob, *(pool / name for pool in self._pools for name in names)):
            if path.is_file():
                yield path

    def _client(self) -> Client:
        if not hasattr(self._threads, "client"):
            self._threads.client = Client(self._limits.timeout)
            self._clients.append(self._threads.client)
        client: Client = self._threads.client
        return client

    def _take(self, file: Locked, path: Path, target: Path) -> str | None:
        """Check a local file and give it its name; what is wrong with it otherwise."""
        found = file.mismatch(path)
        if found is None:
            link_or_copy(path, target)
            self._progress.at(file, file.size)
        return found


def link_or_copy(source: Path, target: Path) -> None:
    """Hard link, or copy where file systems differ or forbid it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _directory(archive: str) -> Path | None:
    """The folder of an archive that is one (a path or a file: URL); None for http and https."""
    parts = urlsplit(archive)
    if parts.scheme in ("http", "https"):
        return None
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme == "" or archive.startswith("/"):
        return Path(archive)
    raise Failure(f"archive scheme {parts.scheme!r} is not one of http, https, file", "correct --archive")


class _Progress:
    """Bytes over all files; says so at most five times a second."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bytes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._said = 0.0

    def at(self, file: Locked, done: int) -> None:
        with self._lock:
            self._bytes[file.sha256] = done
            now = time.monotonic()
            finished = sum(self._bytes.values())
            if now - self._said >= 0.2 or finished == self._total:
                self._said = now
                progress(finished, self._total)
