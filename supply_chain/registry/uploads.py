"""Blob uploads: mount, monolithic, and chunked with resume (OCI distribution specification, Pushing blobs).

States of one upload: a session is started; bytes are sent up to what the registry confirmed; the session is
finished with the digest. After any failure the registry is asked what it has: the blob, a part of it, or
nothing any more, and the upload goes on from there. Failures are counted until more bytes than ever are
confirmed, so a registry that loses its sessions ends the upload with an error.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import anyio
import httpx

from supply_chain.errors import LayoutError, RegistryError
from supply_chain.oci import Descriptor
from supply_chain.registry.retry import TRANSIENT, Attempts
from supply_chain.registry.transport import Transport
from supply_chain.registry.wire import Answer, Body, Interrupted

# Bytes read and hashed in one go.
PIECE = 1024 * 1024

Read = Callable[[int, int], bytes]
Counted = Callable[[int], None]

_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,18})")
_OCTETS = {"content-type": "application/octet-stream"}
# The registry counts another number of bytes, or other bytes, than were sent; only a new session helps.
_OUT_OF_STEP = frozenset({"BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "SIZE_INVALID"})


class How(StrEnum):
    """How a blob came to be in the repository."""

    PRESENT = "present"
    MOUNTED = "mounted"
    SENT = "sent"


@dataclass(frozen=True, slots=True)
class _Session:
    """An upload's URL, and how many bytes the registry has."""

    url: httpx.URL
    at: int = 0


class _Lost(Exception):
    """The session is of no more use; carries the answer that said so."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def read_file(path: Path) -> Read:
    """Ranges of a file, for `upload`."""

    def read(offset: int, length: int) -> bytes:
        # opening a fifo would wait for its writer
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.pread(file, length, offset)
        finally:
            os.close(file)

    return read


def read_bytes(content: bytes) -> Read:
    """Ranges of bytes in memory, for `upload`."""
    return lambda offset, length: content[offset : offset + length]


async def is_there(transport: Transport, blob: Descriptor, scopes: Collection[str]) -> bool:
    """Whether the repository has the blob, whole: a size other than the descriptor's counts as no."""
    url = transport.url(f"blobs/{blob.digest}")
    answer = await transport.call(
        "HEAD", url, f"look-up of blob {blob.digest}", ok=(200, 404), scopes=scopes
    )
    return answer.status == 200 and answer.headers.get("content-length") in (None, str(blob.size))


class Upload:
    """One blob on its way to one repository."""

    def __init__(self, transport: Transport, descriptor: Descriptor, read: Read, on_sent: Counted) -> None:
        self._transport = transport
        self._scopes = transport.scopes("pull", "push")
        self._what = f"push of blob {descriptor.digest}"
        self._blob = descriptor
        self._source = _Source(descriptor, read, on_sent)
        self._attempts = Attempts(transport.policy)
        self._best = 0
        self._chunk = transport.policy.chunk

    async def run(self, mount_from: Sequence[str] = ()) -> How:
        """Bring the blob there, from another repository of the registry if one of `mount_from` has it."""
        if await self._is_there():
            return How.PRESENT
        session = await self._mount(mount_from)
        if session is None:
            return How.MOUNTED
        while True:
            try:
                await self._send(session)
            except _Lost as lost:
                if await self._is_there():
                    return How.SENT
                if not await self._attempts.again():
                    raise self._transport.error(lost.answer, self._what, self._attempts.failed) from lost
                session = await self._start()
            else:
                return How.SENT

    async def _is_there(self) -> bool:
        return await is_there(self._transport, self._blob, self._scopes)

    async def _mount(self, sources: Sequence[str]) -> _Session | None:
        """Try each source in turn. None: mounted; else the session the registry opened instead."""
        session = None
        for source in sources:
            url = self._transport.url("blobs/uploads/", mount=self._blob.digest, **{"from": source})
            scopes = (*self._scopes, f"repository:{source}:pull")
            try:
                answer = await self._transport.call("POST", url, self._what, ok=(201, 202), scopes=scopes)
            except RegistryError as error:
                if error.status is None or error.status in TRANSIENT:
                    raise
                # no right to read there, or no mounting here: the bytes are sent instead
                continue
            if answer.status == 201:
                return None
            session = self._session(answer)
        return session or await self._start()

    async def _start(self) -> _Session:
        url = self._transport.url("blobs/uploads/")
        return self._session(
            await self._transport.call("POST", url, self._what, ok=(202,), scopes=self._scopes)
        )

    def _session(self, answer: Answer) -> _Session:
        least = answer.headers.get("oci-chunk-min-length", "")
        self._chunk = max(self._chunk, int(least[:12]) if least.isdigit() else 0)
        return _Session(self._transport.follow(answer, self._what))

    async def _send(self, session: _Session) -> None:
        size = self._blob.size
        while True:
            whole = session.at == 0 and size <= self._chunk
            try:
                if whole or session.at == size:
                    return await self._finish(session)
                session = await self._patch(session, min(session.at + self._chunk, size))
            except (Interrupted, _Transient) as error:
                failed = error.answer if isinstance(error, _Transient) else error
                await self._transport.wait(self._attempts, self._what, failed)
                if await self._is_there():
                    return None
                session = await self._ask(session)

    async def _patch(self, session: _Session, end: int) -> _Session:
        headers = {**_OCTETS, "content-range": f"{session.at}-{end - 1}"}
        answer = await self._once("PATCH", session.url, headers, self._source.body(session.at, end))
        if answer.status not in (202, 201, 204):
            raise self._refusal(answer)
        has = _has(answer, end)
        if not session.at < has <= end:
            raise _Lost(answer)
        if has > self._best:
            self._best = has
            self._attempts.progressed()
        return self._moved(session, answer, has)

    async def _finish(self, session: _Session) -> None:
        url = session.url.copy_merge_params({"digest": self._blob.digest})
        rest = self._source.body(session.at, self._blob.size)
        answer = await self._once("PUT", url, dict(_OCTETS), rest)
        if answer.status not in (201, 204):
            raise self._refusal(answer)
        stored = answer.headers.get("docker-content-digest", self._blob.digest)
        if stored != self._blob.digest:
            raise _Lost(answer)

    async def _ask(self, session: _Session) -> _Session:
        """What the registry has of this session. Raises _Lost when it has nothing to say."""
        answer = await self._transport.call(
            "GET", session.url, self._what, ok=(204, 200, 202, 400, 404, 405, 416), scopes=self._scopes
        )
        has = _has(answer, -1)
        if answer.status >= 400 or not 0 <= has <= self._source.sent_to:
            raise _Lost(answer)
        return self._moved(session, answer, has)

    def _moved(self, session: _Session, answer: Answer, has: int) -> _Session:
        moved = "location" in answer.headers
        return _Session(self._transport.follow(answer, self._what) if moved else session.url, has)

    async def _once(self, method: str, url: httpx.URL, headers: dict[str, str], body: Body) -> Answer:
        return await self._transport.once(
            method, url, self._what, scopes=self._scopes, headers=headers, body=body
        )

    def _refusal(self, answer: Answer) -> Exception:
        if answer.status in TRANSIENT:
            return _Transient(answer)
        error = self._transport.error(answer, self._what, self._attempts.failed)
        out_of_step = answer.status in (404, 416) or not _OUT_OF_STEP.isdisjoint(error.codes)
        return _Lost(answer) if out_of_step else error


class _Transient(Exception):
    """An answer that may heal."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class _Source:
    """A blob's bytes, hashed as they leave: a blob that changed on disk never arrives whole."""

    def __init__(self, descriptor: Descriptor, read: Read, on_sent: Counted) -> None:
        self._blob = descriptor
        self._read = read
        self._on_sent = on_sent
        self._hash = hashlib.sha256()
        self._hashed_to = 0
        self.sent_to = 0

    def body(self, start: int, end: int) -> Body:
        """Bytes `start` to `end`, both counted from the blob's first."""

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(start, end, PIECE):
                piece = await anyio.to_thread.run_sync(self._piece, at, min(PIECE, end - at))
                self._on_sent(len(piece))
                self.sent_to = max(self.sent_to, at + len(piece))
                yield piece

        return Body(end - start, pieces)

    def _piece(self, at: int, length: int) -> bytes:
        what = f"blob {self._blob.digest}"
        try:
            piece = self._read(at, length)
        except OSError as error:
            raise LayoutError(f"{what}: {error.strerror}", _REBUILD) from error
        if len(piece) != length:
            found = at + len(piece)
            raise LayoutError(
                f"{what}: expected {self._blob.size} bytes, the file ends after {found}", _REBUILD
            )
        new = piece[max(0, self._hashed_to - at) :]
        self._hash.update(new)
        self._hashed_to += len(new)
        if self._hashed_to == self._blob.size and (hexed := self._hash.hexdigest()) != self._blob.hex:
            raise LayoutError(f"{what}: the file's bytes have the digest sha256:{hexed}", _REBUILD)
        return piece


_REBUILD = "the layout changed after it was built: build it again"


def _has(answer: Answer, otherwise: int) -> int:
    """How many bytes the registry says it has; `otherwise` when it says nothing.

    `0-0` may mean one byte or none (distribution says it for none); none is the safe reading, since a chunk
    that starts too early is refused and restarts the session.
    """
    found = _RANGE.fullmatch(answer.headers.get("range", "").strip())
    if found is None:
        return otherwise
    last = int(found[1])
    return last + 1 if last else 0
