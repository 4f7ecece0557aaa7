"""Which registries the platform speaks to: the payload names a host, and could name anything.

1. The reference's registry, and its path where one is listed, is on the allow-list.
2. Every host that a registry sends us to is resolved once for as long as the repository is open, and all its
   addresses are public ones, unless host and port are listed as private, or are the registry itself on this
   machine.
3. Connections go to the addresses that were checked, whatever the name resolves to by then; the certificate
   must be the name's.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import anyio
import httpx

from platform_server.settings import Registries
from supply_chain.errors import SupplyChainError
from supply_chain.reference import Reference, is_loopback
from supply_chain.registry import Policy, Repository, open_repository

# A worker's time is others' too: what a busy registry needs is the queue's patience, not this one's.
POLICY = Policy(attempts=3, patience=30.0)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PORTS = {"http": 80, "https": 443}


class UntrustedRegistry(SupplyChainError):
    """A registry, or a host that it sends us to, is not one that this platform may ask."""


def check_trusted(reference: Reference, allowed: Iterable[str]) -> None:
    """Step 1. Raises UntrustedRegistry. An entry with a path means that repository and all below it."""
    name = f"{reference.registry.lower()}/{reference.repository}/"
    entries = list(allowed)
    for entry in entries:
        host, _, path = entry.partition("/")
        if name.startswith(f"{host.lower()}/{path}{'/' if path else ''}"):
            return
    raise UntrustedRegistry(
        f"registry {reference.name}: expected one of {', '.join(entries) or 'none, since none is trusted'}",
        "add it to the node platform's trusted_registries, if it is yours",
    )


@asynccontextmanager
async def open_trusted(
    reference: Reference, trusted: Iterable[str], settings: Registries
) -> AsyncIterator[Repository]:
    """The reference's repository, if it may be asked. Raises UntrustedRegistry here and from every use."""
    check_trusted(reference, [*trusted, *settings.trusted])
    plain_http = settings.plain_http and is_loopback(reference.registry)
    guard = _Guard(settings, reference.registry if plain_http else None)
    try:
        async with open_repository(
            reference.registry, reference.repository, plain_http=plain_http, policy=POLICY, transport=guard
        ) as repository:
            yield repository
    finally:
        with anyio.CancelScope(shield=True):
            await guard.aclose()


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is everybody's: also what is wrapped in it, by the mappings that IPv6 knows."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


class _Guard(httpx.AsyncBaseTransport):
    """Steps 2 and 3, below everything that knows of HTTP: redirects and token servers pass here too."""

    def __init__(self, settings: Registries, local: str | None) -> None:
        self._settings = settings
        self._local = local
        self._addresses: dict[tuple[str, int], list[str]] = {}
        # One for each host: two hosts at one address must not share a connection.
        self._transports: dict[tuple[str, str, int], httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host, scheme = request.url.host, request.url.scheme
        port = request.url.port or _PORTS[scheme]
        transport = self._transport(scheme, host, port)
        failure: httpx.ConnectError | None = None
        for address in await self._checked(host, port):
            pinned = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return await transport.handle_async_request(pinned)  # (3)
            except httpx.ConnectError as error:
                failure = error
        raise failure or httpx.ConnectError(f"{host} has no address")

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()
        self._transports.clear()

    async def _checked(self, host: str, port: int) -> list[str]:
        """Step 2: the host's addresses. Raises UntrustedRegistry, and ConnectError when it has none."""
        found = self._addresses.get((host, port))
        if found is None:
            try:
                answers = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError as error:
                raise httpx.ConnectError(f"{host}: {error.strerror or error}") from error
            found = list(dict.fromkeys(str(answer[4][0]).partition("%")[0] for answer in answers))
            if not self._may_be_private(host, port):
                for address in found:
                    if not is_public(ipaddress.ip_address(address)):
                        raise UntrustedRegistry(
                            f"host {host} port {port}: expected a public address, found {address}",
                            "if it is a registry of yours: serve --private-registry HOST:PORT",
                        )
            self._addresses[host, port] = found
        return found

    def _may_be_private(self, host: str, port: int) -> bool:
        bracketed = f"[{host}]" if ":" in host else host
        named = {f"{bracketed}:{port}", bracketed}
        # What is spoken to in plain HTTP is on this machine, and nothing else here is.
        return self._local in named or not named.isdisjoint(each.lower() for each in self._settings.private)

    def _transport(self, scheme: str, host: str, port: int) -> httpx.AsyncHTTPTransport:
        key = (scheme, host, port)
        if key not in self._transports:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if scheme == "https":
                context = ssl.create_default_context()
                if self._settings.ca_file is not None:
                    context.load_verify_locations(cafile=self._settings.ca_file)
            self._transports[key] = httpx.AsyncHTTPTransport(verify=context)
        return self._transports[key]
