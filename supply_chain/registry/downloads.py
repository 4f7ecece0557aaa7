"""Blob downloads: streamed, resumed by Range after a cut, and believed only when the digest fits."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from typing import BinaryIO

import anyio
import httpx

from supply_chain.errors import BrokenAnswer, WrongContent
from supply_chain.oci import Descriptor
from supply_chain.registry.retry import Attempts
from supply_chain.registry.transport import Transport
from supply_chain.registry.wire import Answer, Interrupted, check_encoding, pieces

# Bytes that are collected before they are hashed and written, and that make an attempt worth another one.
_PIECE = 1024 * 1024
# … or parts, which are small only where somebody wants them to take much memory.
_PARTS = 4096
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class Download:
    """One blob on its way from one repository into a file, or, without one, only through its digest."""

    def __init__(
        self,
        transport: Transport,
        descriptor: Descriptor,
        file: BinaryIO | None,
        on_received: Callable[[int], None],
    ) -> None:
        self._transport = transport
        self._blob = descriptor
        self._file = file
        self._on_received = on_received
        self._what = f"pull of blob {descriptor.digest}"
        self._attempts = Attempts(transport.policy)
        self._hash = hashlib.sha256()
        self._at = 0
        self._best = 0
        self._mixed = False

    async def run(self) -> None:
        """Fill the file, going on after the bytes that it has.

        Raises WrongContent, after having emptied the file, when the registry's bytes are not the blob, and
        OSError when the file can't be written.
        """
        if self._file is not None:
            await anyio.to_thread.run_sync(self._take_up, self._file)
        while True:
            while self._at < self._blob.size:
                try:
                    await self._attempt()
                except Interrupted as error:
                    self._note_progress()
                    await self._transport.wait(self._attempts, self._what, error)
            found = self._hash.hexdigest()
            if found == self._blob.hex:
                return
            mixed = self._mixed
            self._restart()
            # Parts from several answers, or from an earlier run, may not belong together; one whole
            # answer that is wrong stays wrong.
            if not mixed:
                raise WrongContent(
                    f"{self._what}: {self._transport.registry} served {self._blob.size} bytes "
                    f"with the digest sha256:{found}",
                    "the registry or a proxy before it is broken or lies: pull from another one",
                )
            self._mixed = False

    async def _attempt(self) -> None:
        """One GET from the bytes that are there."""
        headers = {"range": f"bytes={self._at}-"} if self._at else {}
        url = self._transport.url(f"blobs/{self._blob.digest}")
        expected = self._blob.size - self._at
        async with self._transport.open(
            "GET", url, scopes=self._transport.scopes("pull"), headers=headers, expected=expected
        ) as response:
            if response.status_code == 416 and self._at:
                self._restart()
                raise Interrupted("it does not serve the range that is missing")
            if response.status_code not in (200, 206):
                refused = Answer(
                    response.request.url, response.status_code, response.headers,
                    await self._transport.explanation(response),
                )  # fmt: skip
            else:
                refused = None
                await self._take(response)
        if refused is not None:
            await self._transport.wait(self._attempts, self._what, refused)

    async def _take(self, response: httpx.Response) -> None:
        check_encoding(response, self._what)
        start, length = _place(response, self._what)
        if start != self._at:
            if start != 0:
                self._restart()
                raise Interrupted("it served another range than the one asked for")
            self._restart()
        if length is not None and start + length != self._blob.size:
            kind = response.headers.get("content-type", "no type")[:80]
            raise Interrupted(f"expected {self._blob.size} bytes, found {start + length} ({kind})")
        if start:
            self._mixed = True
        pending: list[bytes] = []
        size = 0
        try:
            async for part in pieces(response):
                pending.append(part)
                size += len(part)
                if size >= _PIECE or len(pending) >= _PARTS:
                    parts, pending, size = pending, [], 0
                    await self._keep(parts)
        finally:
            with anyio.CancelScope(shield=True):
                await self._keep(pending)
        if self._at < self._blob.size:
            raise Interrupted(f"it ended after {self._at} of {self._blob.size} bytes")

    async def _keep(self, parts: Sequence[bytes]) -> None:
        size = sum(map(len, parts))
        self._on_received(size)
        surplus = size - (self._blob.size - self._at)
        await anyio.to_thread.run_sync(self._write, parts)
        if surplus > 0:
            self._restart()
            raise WrongContent(
                f"{self._what}: more than the expected {self._blob.size} bytes",
                "the registry or a proxy before it is broken or lies: pull from another one",
            )

    def _write(self, parts: Sequence[bytes]) -> None:
        """Parts are not put together first: that would copy each byte twice more."""
        for whole in parts:
            part = whole[: self._blob.size - self._at]
            if self._file is not None:
                self._file.write(part)
            self._hash.update(part)
            self._at += len(part)

    def _take_up(self, file: BinaryIO) -> None:
        file.seek(0)
        while piece := file.read(_PIECE):
            self._hash.update(piece)
            self._at += len(piece)
        self._mixed = self._at > 0
        if self._at > self._blob.size:
            self._restart()

    def _restart(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()
        self._hash = hashlib.sha256()
        self._at = 0

    def _note_progress(self) -> None:
        if self._at >= self._best + _PIECE:
            self._best = self._at
            self._attempts.progressed()


async def read_range(
    transport: Transport,
    descriptor: Descriptor,
    offset: int,
    length: int,
    on_received: Callable[[int], None],
) -> bytes:
    """`length` bytes of a blob from `offset` on. They are a part, so no digest vouches for them.

    From a registry without Range the bytes before them are received too, and dropped.
    """
    if not 0 <= offset <= offset + length <= descriptor.size:
        raise ValueError(f"{offset}+{length} is outside the blob's {descriptor.size} bytes")
    if length == 0:
        return b""
    what = f"pull of {length} bytes at {offset} of blob {descriptor.digest}"
    url = transport.url(f"blobs/{descriptor.digest}")
    attempts = Attempts(transport.policy)
    headers = {"range": f"bytes={offset}-{offset + length - 1}"}
    while True:
        failed: Answer | Interrupted
        try:
            async with transport.open(
                "GET", url, scopes=transport.scopes("pull"), headers=headers, expected=offset + length
            ) as response:
                if response.status_code in (200, 206):
                    return await _part(response, what, offset, length, on_received)
                content = await transport.explanation(response)
                failed = Answer(response.request.url, response.status_code, response.headers, content)
        except Interrupted as error:
            failed = error
        await transport.wait(attempts, what, failed)


async def _part(
    response: httpx.Response, what: str, offset: int, length: int, on_received: Callable[[int], None]
) -> bytes:
    check_encoding(response, what)
    start, _ = _place(response, what)
    if start not in (0, offset):
        raise Interrupted("it served another range than the one asked for")
    kept = io.BytesIO()
    skip = offset - start
    async for part in pieces(response):
        on_received(len(part))
        kept.write(part[skip:])
        skip = max(0, skip - len(part))
        if kept.tell() >= length:
            return kept.getvalue()[:length]
    raise Interrupted(f"it ended after {kept.tell()} of {length} bytes")


def _place(response: httpx.Response, what: str) -> tuple[int, int | None]:
    """Where the response's bytes belong, and how many they are if it says so."""
    length = response.headers.get("content-length", "")
    count = int(length) if length.isascii() and length.isdigit() else None
    if response.status_code == 200:
        return 0, count
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
    if found is None:
        raise BrokenAnswer(
            f"{what}: 206 without a usable Content-Range", "check the proxy before the registry", 206
        )
    return int(found[1]), int(found[2]) - int(found[1]) + 1
