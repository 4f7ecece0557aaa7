"""One HTTP exchange: TLS, timeouts, a bound on time and bytes. No retries, no redirects, no credentials of
its own.

This sits on httpx's transport, not on its client: the client keeps cookies and logs whole URLs, and upload
sessions and redirects carry signatures in theirs.
"""

from __future__ import annotations

import logging
import ssl
import urllib.request
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import anyio
import httpx

from pipelines.errors import UsageError
from supply_chain.errors import BrokenAnswer
from supply_chain.reference import is_loopback
from supply_chain.registry.retry import Policy

USER_AGENT = "disk-image/0.1"


# httpx's own, and what comes through from below it when a connection breaks inside TLS.
_BROKEN = (
    httpx.TransportError,
    ssl.SSLError,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
)


def _without_headers(record: logging.LogRecord) -> bool:
    """httpcore's debug log shows whole answers' headers, and a Location may be signed."""
    return not record.getMessage().startswith("receive_response_headers.complete")


logging.getLogger("httpcore.http11").addFilter(_without_headers)


class Interrupted(Exception):
    """The exchange ended without a whole answer. `final`: trying again can't help, and `hint` says what
    does.
    """

    def __init__(self, reason: str, *, final: bool = False, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.final = final
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries: its size in bytes, and a way to read it from its start as often as needed."""

    size: int
    open: Callable[[], AsyncIterator[bytes]]

    @classmethod
    def of(cls, content: bytes) -> Body:
        """A body held in memory."""

        async def once() -> AsyncIterator[bytes]:
            yield content

        return cls(len(content), once)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response: final URL, status, headers, bounded body."""

    url: httpx.URL
    status: int
    headers: httpx.Headers
    content: bytes


class Wire:
    """Connections to one registry, its token server and whatever it redirects to."""

    def __init__(
        self,
        policy: Policy,
        *,
        plain_http: bool = False,
        ca_file: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.policy = policy
        self._plain_http = plain_http
        self._given = transport
        self._ca_file = ca_file
        # Reading the system's authorities takes longer than a small push, so it waits for the first https.
        self._tls: ssl.SSLContext | None = None if ca_file is None else _tls(ca_file)
        self._transports: dict[tuple[str, str | None], httpx.AsyncBaseTransport] = {}

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            for transport in self._transports.values():
                await transport.aclose()
        self._transports.clear()

    def check(self, url: httpx.URL) -> httpx.URL:
        """Refuse URLs that would leave TLS, or carry credentials. Raises BrokenAnswer."""
        if url.userinfo:
            raise BrokenAnswer(
                f"{shown(url)}: a URL with credentials in it", "the registry must not send such URLs"
            )
        plain = url.scheme == "http" and self._plain_http and is_loopback(_bracketed(url.host))
        if url.scheme != "https" and not plain:
            raise BrokenAnswer(
                f"the registry sent us to {shown(url)}, which is not https",
                "behind a proxy, tell the registry its public URL (X-Forwarded-Proto or its own setting)",
            )
        return url

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        body: Body | None = None,
        *,
        expected: int = 0,
    ) -> AsyncIterator[httpx.Response]:
        """Send one request; `expected` is how many bytes the answer may rightly have.

        Raises Interrupted from here or from reading the response inside the block.
        """
        policy = self.policy
        budget = policy.budget((body.size if body else 0) + expected)
        timeout = httpx.Timeout(policy.silence, connect=policy.connect_timeout, pool=None)
        sent = {"user-agent": USER_AGENT, "accept-encoding": "identity", **headers}
        if body is not None or method in ("POST", "PUT", "PATCH"):
            sent["content-length"] = str(body.size if body else 0)
        request = httpx.Request(
            method,
            self.check(url),
            headers=sent,
            content=body.open() if body is not None else None,
            extensions={"timeout": timeout.as_dict()},
        )
        try:
            with anyio.fail_after(budget):
                response = await self._transport(url).handle_async_request(request)
                response.request = request
                try:
                    yield response
                finally:
                    with anyio.CancelScope(shield=True):
                        await response.aclose()
        except TimeoutError:
            raise Interrupted(f"slower than allowed: not done after {budget:.0f} s") from None
        except _BROKEN as error:
            raise _interrupted(error, self._ca_file) from error

    def _transport(self, url: httpx.URL) -> httpx.AsyncBaseTransport:
        if self._given is not None:
            return self._given
        key = (url.scheme, proxy_for(url))
        if key not in self._transports:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=30)
            self._transports[key] = httpx.AsyncHTTPTransport(
                verify=self._context(url), limits=limits, proxy=key[1]
            )
        return self._transports[key]

    def _context(self, url: httpx.URL) -> ssl.SSLContext:
        if url.scheme == "http":
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._tls is None:
            self._tls = _tls(None)
        return self._tls


def pieces(response: httpx.Response) -> AsyncIterable[bytes]:
    """The body as it comes, undecoded, once."""
    if not isinstance(response.stream, httpx.AsyncByteStream):
        raise TypeError("a transport must answer with an asynchronous stream")
    return response.stream


async def read_all(response: httpx.Response, limit: int, what: str) -> bytes:
    """The body, at most `limit` bytes. Raises BrokenAnswer for more, or for a content encoding."""
    check_encoding(response, what)
    parts = bytearray()
    async for part in pieces(response):
        parts += part
        if len(parts) > limit:
            raise BrokenAnswer(
                f"{what}: the answer has more than {limit} bytes",
                "no such document is that large",
                response.status_code,
            )
    return bytes(parts)


def check_encoding(response: httpx.Response, what: str) -> None:
    """Digests are of bytes as stored; a proxy that compresses on the way is refused."""
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise BrokenAnswer(
            f"{what}: expected the bytes as they are stored, found Content-Encoding: {encoding[:40]}",
            "switch off compression in the proxy before the registry",
            response.status_code,
        )


def shown(url: httpx.URL) -> str:
    """A URL for people: without user, password, query and fragment."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    """The system's certificate authorities, and those in `ca_file` beside them."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"{ca_file}: no certificate authority in PEM form ({error})", "check --ca-file"
            ) from error
    return context


def proxy_for(url: httpx.URL) -> str | None:
    """The proxy that the environment names for this URL (https_proxy, no_proxy …); loopback never has
    one.
    """
    if is_loopback(_bracketed(url.host)) or urllib.request.proxy_bypass(url.host):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _interrupted(error: Exception, ca_file: Path | None) -> Interrupted:
    """The reason without the request's URL, and whether it is worth another attempt."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            trusted = f"the system's authorities and {ca_file}" if ca_file else "the system's authorities"
            return Interrupted(
                f"its certificate is not trusted: {cause.verify_message} (checked against {trusted})",
                final=True,
                hint="give the registry's certificate authority with --ca-file FILE",
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in (
            "WRONG_VERSION_NUMBER",
            "RECORD_LAYER_FAILURE",
        ):
            return Interrupted(
                "it does not speak TLS", final=True, hint="for a registry on this machine, add --plain-http"
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.TimeoutException):
        return Interrupted(f"no answer in time ({type(error).__name__})")
    if isinstance(error, httpx.ConnectError):
        return Interrupted(f"can't connect: {error}")
    return Interrupted(f"the connection was cut ({type(error).__name__})")
