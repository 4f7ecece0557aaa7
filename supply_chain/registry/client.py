"""The registry client's surface: one repository, opened for as long as it is used.

async with open_repository("localhost:5000", "team/image", plain_http=True) as repository:
    document = await repository.manifests.get("latest")
    await repository.download(descriptor, file)
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import httpx

from pipelines.errors import UsageError
from supply_chain.errors import BrokenAnswer
from supply_chain.oci import Descriptor
from supply_chain.reference import check_digest, check_registry, check_repository, is_loopback
from supply_chain.registry.auth import Authenticator
from supply_chain.registry.credentials import Credentials, DockerCredentials
from supply_chain.registry.deletes import delete
from supply_chain.registry.downloads import Download, read_range
from supply_chain.registry.manifests import Manifests
from supply_chain.registry.referrers import Referrers
from supply_chain.registry.retry import Policy
from supply_chain.registry.tags import list_tags
from supply_chain.registry.transport import Transport
from supply_chain.registry.uploads import How, Read, Upload, is_there
from supply_chain.registry.wire import Wire


def _ignored(count: int) -> None:
    """Nobody counts."""


class Repository:
    """One repository of one registry. Its methods may run side by side."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.manifests = Manifests(transport)
        self.referrers = Referrers(transport, self.manifests)

    @property
    def name(self) -> str:
        """`host[:port]/path`."""
        return f"{self._transport.registry}/{self._transport.repository}"

    @property
    def policy(self) -> Policy:
        """The bounds in force."""
        return self._transport.policy

    async def has_blob(self, blob: Descriptor) -> bool:
        """Whether the repository has the blob (HEAD)."""
        return await is_there(self._transport, blob, self._transport.scopes("pull"))

    async def upload(
        self,
        descriptor: Descriptor,
        read: Read,
        *,
        mount_from: Sequence[str] = (),
        on_sent: Callable[[int], None] = _ignored,
    ) -> How:
        """Bring a blob there: HEAD, then mount from the repositories given, then send.

        `on_sent` is called with each number of bytes handed to the connection, resent ones included.
        """
        return await Upload(self._transport, descriptor, read, on_sent).run(mount_from)

    async def download(
        self, descriptor: Descriptor, file: BinaryIO, *, on_received: Callable[[int], None] = _ignored
    ) -> None:
        """Bring a blob into `file`, which is open for reading and writing and may have its first bytes
        already.

        Raises WrongContent, with the file emptied, when what comes is not the blob, and OSError when the
        file can't be written.
        """
        await Download(self._transport, descriptor, file, on_received).run()

    async def check(self, descriptor: Descriptor) -> None:
        """Read a blob of any size, and keep nothing. Raises WrongContent when what comes is not the blob."""
        await Download(self._transport, descriptor, None, _ignored).run()

    async def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob, at most `limit` bytes. Raises BrokenAnswer when the descriptor says more."""
        if descriptor.size > limit:
            raise BrokenAnswer(
                f"blob {descriptor.digest}: {descriptor.size} bytes, at most {limit} are read",
                "refuse this image",
            )
        file = io.BytesIO()
        await self.download(descriptor, file)
        return file.getvalue()

    async def read_range(
        self,
        descriptor: Descriptor,
        offset: int,
        length: int,
        *,
        on_received: Callable[[int], None] = _ignored,
    ) -> bytes:
        """A part of a blob. No digest vouches for a part: its reader must check what it says by other
        means.
        """
        return await read_range(self._transport, descriptor, offset, length, on_received)

    async def delete_blob(self, digest: str) -> bool:
        """Delete a blob; False when it was not there. Whoever refers to it is broken then."""
        return await delete(self._transport, f"blobs/{check_digest(digest)}", f"blob {digest}")

    async def tags(self) -> list[str]:
        """Every tag, in the registry's order; none when there is no such repository."""
        return await list_tags(self._transport)


@asynccontextmanager
async def open_repository(
    registry: str,
    repository: str,
    *,
    plain_http: bool = False,
    ca_file: Path | None = None,
    credentials: Credentials | None = None,
    policy: Policy | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Repository]:
    """Connect on first use. `ca_file` adds certificate authorities (PEM); `transport` replaces the network.

    Raises UsageError for `plain_http` with a registry that is not this machine.
    """
    check_registry(registry)
    check_repository(repository)
    if plain_http and not is_loopback(registry):
        raise UsageError(
            f"--plain-http is for registries on this machine, not for {registry}",
            f"leave it out; if {registry} has a private certificate authority: --ca-file FILE",
        )
    wire = Wire(policy or Policy(), plain_http=plain_http, ca_file=ca_file, transport=transport)
    async with wire:
        auth = Authenticator(registry, repository, credentials or DockerCredentials(), wire)
        scheme = "http" if plain_http else "https"
        yield Repository(Transport(registry, repository, wire, auth, scheme=scheme))
