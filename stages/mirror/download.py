"""One file over HTTP into `partial/<sha256>`: resumed, bounded in time and tries, checked before it counts.

RFC 9110: 14 Range Requests, 10.2.3 Retry-After.
"""

from __future__ import annotations

import email.utils
import errno
import fcntl
import http.client
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlsplit, urlunsplit

from stages.mirror.client import Address, Client, Loops
from stages.mirror.locked import Locked

_CHUNK = 1 << 18
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class Gone(Exception):
    """The archive does not have the file (404 or 410)."""


class Mismatch(Exception):
    """The archive served something else; the message has expected and found."""


class Unusable(Exception):
    """The archive can't be used now: unreachable, stalled, refusing, looping."""


class _Again(Exception):
    """This try failed in a way that another may not; `wait` is what the server asks for, in seconds."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and counts. A transfer below `least_rate` bytes a second over `window` seconds has stalled."""

    tries: int = 5
    timeout: float = 30
    first_pause: float = 0.5
    longest_pause: float = 60
    window: float = 30
    least_rate: int = 1024


LIMITS = Limits()


class Download:
    """One file from one archive."""

    def __init__(
        self,
        archive: str,
        file: Locked,
        partial: Path,
        client: Client,
        limits: Limits,
        progress: Callable[[Locked, int], None],
    ) -> None:
        parts = urlsplit(archive)
        path = f"{parts.path.rstrip('/')}/{quote(file.pool_path, safe='/~')}"
        self._address = Address(urlunsplit(parts._replace(path=path)))
        self.shown = self._address.shown
        self._file = file
        self._partial = partial
        self._client = client
        self._limits = limits
        self._progress = progress

    def run(self, target: Path) -> None:
        """Download and put the checked file at `target`. Raises Gone, Mismatch or Unusable."""
        with self._locked() as partial:
            pause = self._limits.first_pause
            for tries_left in reversed(range(self._limits.tries)):
                try:
                    self._complete(partial)
                    break
                except _Again as error:
                    if not tries_left:
                        raise Unusable(f"{self.shown}: {error} ({self._limits.tries} tries)") from None
                    wait = error.wait if error.wait is not None else pause * random.uniform(0.5, 1.5)
                    if wait > self._limits.longest_pause:
                        raise Unusable(f"{self.shown}: {error}, asks to wait {wait:.0f} s") from None
                    print(f"{self.shown}: {error}; again in {wait:.1f} s", flush=True)
                    time.sleep(wait)
                    pause *= 2
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(self._partial, target)
            except OSError:
                # another file system, or another stage, done with the same file, removed its name
                partial.seek(0)
                with target.open("wb") as copy:
                    shutil.copyfileobj(partial, copy, _CHUNK)

    def _locked(self) -> IO[bytes]:
        """The partial file, ours alone: another stage or process that wants it waits and then finds it
        complete.
        """
        while True:
            file = os.fdopen(os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._partial)):
                    return file
            except FileNotFoundError:
                pass
            file.close()  # whoever had the lock removed the file: begin anew

    def _complete(self, partial: IO[bytes]) -> None:
        """Fill `partial` up and check it; on a mismatch of a resumed file, once more from the start."""
        start = partial.seek(0, os.SEEK_END)
        if start > self._file.size:
            start = partial.truncate(0)
        if start < self._file.size:
            start = self._fetch(partial, start)
        found = self._file.mismatch(self._partial)
        if found is None:
            self._progress(self._file, self._file.size)
            return
        partial.truncate(0)
        if start:
            raise _Again("what an earlier run left does not fit", 0)
        raise Mismatch(f"{self.shown}: {found}")

    def _fetch(self, partial: IO[bytes], start: int) -> int:
        """Append from byte `start` on; returns where the server really began."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "disk-image"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            response = self._client.get(self._address, headers)
            if response.status not in (200, 206):
                self._client.finish(response)
                raise self._refusal(response, partial)
            if start and not _continues(response, start):
                start = 0
            self._expect(response, start)
            partial.truncate(start)
            partial.seek(start)
            self._copy(response, partial, start)
            self._client.finish(response)
        except (_Again, Mismatch):
            self._client.drop()
            raise
        except Loops as error:
            raise Unusable(f"{self.shown}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            self._client.drop()
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                raise
            raise _Again(_described(error)) from None
        return start

    def _refusal(self, response: http.client.HTTPResponse, partial: IO[bytes]) -> Exception:
        if response.status in (404, 410):
            return Gone()
        if response.status == 416:
            partial.truncate(0)
            return _Again("the server can't continue the download", 0)
        if response.status in _TRY_AGAIN:
            return _Again(f"HTTP {response.status}", _retry_after(response.headers.get("Retry-After")))
        return Unusable(f"{self.shown}: HTTP {response.status}")

    def _expect(self, response: http.client.HTTPResponse, start: int) -> None:
        """Refuse by the headers what can't be the file."""
        kind = response.headers.get_content_type()
        if kind == "text/html":
            raise Mismatch(
                f"{self.shown}: expected a package of {self._file.size} bytes, found an HTML page"
            )
        length = response.headers.get("Content-Length")
        if length is not None and length.isdigit() and start + int(length) != self._file.size:
            raise Mismatch(f"{self.shown}: expected {self._file.size} bytes, found {start + int(length)}")

    def _copy(self, response: http.client.HTTPResponse, partial: IO[bytes], start: int) -> None:
        done, window_start, window_done = start, time.monotonic(), start
        while chunk := response.read1(_CHUNK):
            done += len(chunk)
            if done > self._file.size:
                partial.truncate(0)
                raise Mismatch(f"{self.shown}: expected {self._file.size} bytes, found more")
            view = memoryview(chunk)
            while view:  # a disk that is nearly full takes a part
                view = view[partial.write(view) :]
            self._progress(self._file, done)
            now = time.monotonic()
            if now - window_start >= self._limits.window:
                if done - window_done < self._limits.least_rate * (now - window_start):
                    raise _Again(f"stalled: {done - window_done} bytes in {now - window_start:.0f} s")
                window_start, window_done = now, done
        if done < self._file.size:
            raise _Again(f"truncated: expected {self._file.size} bytes, found {done}")


def _continues(response: http.client.HTTPResponse, start: int) -> bool:
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _retry_after(value: str | None) -> float | None:
    """Seconds from now: a number or an HTTP date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _described(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "stalled: no answer in time"
    return f"{type(error).__name__}: {error}"
