"""A small HTTP client: kept connections, bounded redirects, credentials for one origin only.

Connections stay open between files (RFC 9112, 9.3): an archive is asked for dozens of small ones, and each
new connection costs a look-up and, over TLS, two more round trips.
"""

from __future__ import annotations

import base64
import http.client
import threading
from collections.abc import Mapping
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
# What an error page may hold before its connection is dropped instead of read to the end.
_SMALL = 1 << 16

_Origin = tuple[str, str]


class Loops(Exception):
    """Redirected too often, or to something that is not http or https."""


class Address:
    """A URL split into what is asked for, what may be shown, and the credentials that are neither."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self.origin: _Origin = (parts.scheme, host)
        self.target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        # A query may hold a token.
        self.shown = urlunsplit((parts.scheme, host, parts.path, "", ""))
        self.url = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
        self.authorization = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self.authorization = "Basic " + base64.b64encode(pair).decode()


class Client:
    """One thread's connections; `timeout` is in seconds, for connecting and for each read."""

    # Resolvers drop look-ups that come all at once and then answer seconds later: one connects at a time.
    _connecting = threading.Lock()

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._open: dict[_Origin, http.client.HTTPConnection] = {}

    def get(self, address: Address, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """The response after redirects, its body unread. Raises Loops, OSError, HTTPException."""
        authorization, home = address.authorization, address.origin
        for _ in range(_MOST_REDIRECTS + 1):
            sent = dict(headers)
            if authorization and address.origin == home:
                sent["Authorization"] = authorization
            response = self._request(address, sent)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None:
                return response
            self.finish(response)
            address = Address(urljoin(address.url, location))
            if address.origin[0] not in ("http", "https"):
                raise Loops("redirects to something that is not http or https")
        raise Loops(f"redirects without end (more than {_MOST_REDIRECTS})")

    def finish(self, response: http.client.HTTPResponse) -> None:
        """Be done with a response; the connection stays if little of the body is left to read."""
        if response.length is not None and response.length <= _SMALL:
            response.read()
        if not response.isclosed():
            self.drop()

    def drop(self) -> None:
        """Close every connection: after an error in the middle of a body nothing else is safe."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    def _request(self, address: Address, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        kept = address.origin in self._open
        try:
            return self._send(address, headers)
        except (http.client.RemoteDisconnected, ConnectionError):
            self.drop()
            if not kept:
                raise
            # The server closed an idle connection, as it may.
            return self._send(address, headers)
        except BaseException:
            self.drop()
            raise

    def _send(self, address: Address, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        connection = self._open.get(address.origin)
        if connection is None:
            scheme, host = address.origin
            kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
            connection = kind(host, timeout=self._timeout)
            with self._connecting:
                connection.connect()
            self._open[address.origin] = connection
        connection.request("GET", address.target, headers=dict(headers))
        return connection.getresponse()
