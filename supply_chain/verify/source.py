"""Where an image to verify is: an OCI layout on disk, or a repository in a registry, behind one interface.

A source gives out nothing whose size and digest are not those it was asked for. A registry's tag is resolved
once; all else is asked for by digest. That a listing fails is an error, never an empty list.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio

from supply_chain.errors import BrokenAnswer, InvalidDocument, InvalidReference, LayoutError, WrongContent
from supply_chain.layout import Layout, open_layout
from supply_chain.oci import DOCUMENT_LIMIT, Descriptor
from supply_chain.reference import Reference, parse_reference
from supply_chain.referrer import read_referrer
from supply_chain.registry import Credentials, Document, Policy, Repository, open_repository

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Hanging:
    """One entry of the listing of referrers, by its manifest's digest: its bundle, or why it has none."""

    digest: str
    bundle: Descriptor | None
    why: str = ""


class Source(Protocol):
    """An image and what hangs on it. All methods raise SupplyChainErrors."""

    @property
    def name(self) -> str:
        """As the caller wrote it."""

    @property
    def on_disk(self) -> bool:
        """Whether reading every blob costs no traffic."""

    async def image(self) -> Document:
        """The image's manifest with its digest, which from now on is what is verified."""

    async def referrers(self, image: str) -> list[Hanging]:
        """What is listed as referring to the manifest with the digest `image`."""

    async def read(self, blob: Descriptor, limit: int) -> bytes:
        """A blob's bytes, at most `limit`."""

    async def check(self, blob: Descriptor) -> None:
        """Read a blob of any size once."""

    async def read_through(self, blob: Descriptor, take: Callable[[bytes], None]) -> None:
        """The same for whoever takes the bytes too: they were the blob's only when this returns."""

    async def has(self, blob: Descriptor) -> bool:
        """Whether the blob is said to be there."""


class LayoutSource:
    """The image in a layout; the index's other manifests are the listing."""

    on_disk = True

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @property
    def name(self) -> str:
        return str(self._layout.folder)

    async def image(self) -> Document:
        content = await anyio.to_thread.run_sync(lambda: self._layout.manifest_bytes)
        return Document(self._layout.image, content)

    async def referrers(self, image: str) -> list[Hanging]:
        entries = {entry.digest: entry for entry in self._layout.index.manifests[1:]}
        return [await anyio.to_thread.run_sync(self._hanging, entry, image) for entry in entries.values()]

    async def read(self, blob: Descriptor, limit: int) -> bytes:
        return await anyio.to_thread.run_sync(lambda: self._layout.read(blob, limit=limit))

    async def check(self, blob: Descriptor) -> None:
        await self.read_through(blob, lambda _: None)

    async def read_through(self, blob: Descriptor, take: Callable[[bytes], None]) -> None:
        def run() -> None:
            for chunk in self._layout.stream(blob):
                take(chunk)

        await anyio.to_thread.run_sync(run)

    async def has(self, blob: Descriptor) -> bool:
        return await anyio.to_thread.run_sync(self._layout.has, blob)

    def _hanging(self, entry: Descriptor, image: str) -> Hanging:
        try:
            return _hanging(entry, self._layout.read(entry, limit=DOCUMENT_LIMIT), image)
        except LayoutError as error:
            return Hanging(entry.digest, None, error.what)


class RegistrySource:
    """The image at a reference."""

    on_disk = False

    def __init__(self, reference: Reference, repository: Repository) -> None:
        self._reference = reference
        self._repository = repository
        self._image: Document | None = None

    @property
    def name(self) -> str:
        return str(self._reference)

    async def image(self) -> Document:
        if self._image is None:
            self._image = await self._repository.manifests.get(self._reference.target)
        return self._image

    async def referrers(self, image: str) -> list[Hanging]:
        entries = await self._repository.referrers.entries(image)
        return [await self._hanging(entry, image) for entry in entries]

    async def read(self, blob: Descriptor, limit: int) -> bytes:
        return await self._repository.read(blob, limit)

    async def check(self, blob: Descriptor) -> None:
        await self._repository.check(blob)

    async def read_through(self, blob: Descriptor, take: Callable[[bytes], None]) -> None:
        with tempfile.TemporaryFile() as file:
            await self._repository.download(blob, file)
            file.seek(0)

            def run() -> None:
                while chunk := file.read(_CHUNK):
                    take(chunk)

            await anyio.to_thread.run_sync(run)

    async def has(self, blob: Descriptor) -> bool:
        return await self._repository.has_blob(blob)

    async def _hanging(self, entry: Descriptor, image: str) -> Hanging:
        try:
            document = await self._repository.manifests.find(entry.digest)
        except (BrokenAnswer, WrongContent) as error:
            return Hanging(entry.digest, None, error.what)
        if document is None:
            return Hanging(entry.digest, None, "is listed, but not there")
        return _hanging(entry, document.content, image)


@asynccontextmanager
async def open_source(
    image: str,
    *,
    plain_http: bool = False,
    ca_file: Path | None = None,
    credentials: Credentials | None = None,
    policy: Policy | None = None,
) -> AsyncIterator[Source]:
    """The layout in the folder `image`, or the image at the reference `image`. Raises LayoutError,
    InvalidReference and UsageError.
    """
    folder = Path(image)
    if await anyio.to_thread.run_sync(folder.is_dir):
        yield LayoutSource(await anyio.to_thread.run_sync(open_layout, folder))
        return
    try:
        reference = parse_reference(image)
    except InvalidReference as error:
        raise InvalidReference(f"no folder {image!r}; as a reference: {error.what}", error.hint) from None
    async with open_repository(
        reference.registry, reference.repository,
        plain_http=plain_http, ca_file=ca_file, credentials=credentials, policy=policy,
    ) as repository:  # fmt: skip
        yield RegistrySource(reference, repository)


def _hanging(entry: Descriptor, content: bytes, image: str) -> Hanging:
    try:
        bundle = read_referrer(content, image, "manifest")
    except InvalidDocument as error:
        return Hanging(entry.digest, None, error.what)
    return Hanging(entry.digest, bundle, "" if bundle else "is no Sigstore bundle v0.3")
