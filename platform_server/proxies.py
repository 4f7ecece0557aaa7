"""Proxies: whose word is taken for where a request came from.

The address that a proxy saw is the last one of X-Forwarded-For that is no proxy's own; those before it are
the sender's own words. `Forwarded` (RFC 7239) is not read: one way to say it is enough. Whoever can open a
socket file is a proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from platform_server.errors import Invalid

_SOCKET_FILE = "unix"


def check_proxy(text: str) -> str:
    """An address or network that may be trusted. Raises Invalid, for `*` as well."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise Invalid(
            field="--proxy", value=text, rule="an address, or a network without host bits"
        ) from None
    return text


def plain(address: str) -> str:
    """An IPv4 address as itself, also where a socket for both names it in IPv6 (RFC 4291, 2.5.5.2)."""
    with suppress(ValueError):
        if mapped := ipaddress.IPv6Address(address).ipv4_mapped:
            return str(mapped)
    return address


def sender_of(address: str) -> str:
    """Whom an address stands for where senders are counted: one host has all of an IPv6 /64 (RFC 7421)."""
    address = plain(address)
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address, 64), strict=False))
    except ValueError:
        return address


class Proxies:
    """The addresses of proxies, and the applications behind them."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._names = [*networks, _SOCKET_FILE]
        self._networks = [ipaddress.ip_network(each) for each in networks]

    def __contains__(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(plain(address))
        except ValueError:
            return False
        return any(found in each for each in self._networks)

    def before(self, app: ASGIApp) -> ASGIApp:
        """The application, where `client` and `scheme` are what these proxies say."""
        inner: Any = ProxyHeadersMiddleware(cast(Any, app), self._names)

        async def outer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                address, port = scope.get("client") or (_SOCKET_FILE, 0)
                scope["client"] = (plain(address), port)
            await inner(scope, receive, send)

        return outer
