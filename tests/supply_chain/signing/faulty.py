"""An HTTP server on loopback that goes wrong as planned: a forge, or a proxy before a trust's services."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests import loopback
from tests.loopback import Cut, Handler, LoopbackServer
from tests.supply_chain.registry_server import Fault, Planned

LOGIN_PAGE = b"<!DOCTYPE html><title>Log in</title>"
_STATUS = {Fault.TOO_MANY: 429, Fault.ERROR: 500, Fault.BUSY: 503}


@dataclass(frozen=True)
class Request:
    """A request as it came. Header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class FaultyServer(LoopbackServer):
    """Answers by `answer` what no fault hits. Change the public attributes before or between requests."""

    def __init__(self, answer: Callable[[Request], Reply], tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(_Handler, tls)
        self.answer = answer
        self.faults: list[Planned] = []
        self.retry_after = "1"
        self.seen: list[Request] = []

    @property
    def url(self) -> str:
        return self.root

    def asked(self, path: str) -> int:
        """How many requests came for a path with this in it."""
        return sum(path in one.path for one in self.seen)


@contextmanager
def serving(
    answer: Callable[[Request], Reply], tls: tuple[Path, Path] | None = None
) -> Iterator[FaultyServer]:
    """A server for the length of a test; `tls` are its certificate and key."""
    with loopback.serving(FaultyServer(answer, tls)) as server:
        yield server


def proxy(upstream: str) -> Callable[[Request], Reply]:
    """Answers as the services at `upstream` do."""
    host = urlsplit(upstream).netloc

    def forward(request: Request) -> Reply:
        connection = http.client.HTTPConnection(host, timeout=20)
        try:
            connection.request(request.method, request.path, request.body or None, request.headers)
            response = connection.getresponse()
            return Reply(
                response.status, response.read(), {"Content-Type": response.headers["content-type"]}
            )
        finally:
            connection.close()

    return forward


class _Handler(Handler):
    server: FaultyServer

    def _handle(self) -> None:
        with suppress(ConnectionError):
            try:
                self._play()
                return
            except Cut:
                pass
        self.cut()

    do_GET = do_POST = _handle

    def _play(self) -> None:
        server = self.server
        fault = next(
            (one.fault for one in server.faults if one.hits(len(server.seen), self.command, self.path)), None
        )
        headers = {name.lower(): value for name, value in self.headers.items()}
        length = int(headers.get("content-length", 0))
        body = b"" if fault is Fault.CUT_BEFORE else self.rfile.read(length)
        request = Request(self.command, self.path, headers, body)
        server.seen.append(request)
        if fault in (Fault.CUT_BEFORE, Fault.CUT_IN_BODY):
            raise Cut
        if fault in _STATUS:
            retry = {} if fault is Fault.ERROR else {"Retry-After": server.retry_after}
            return self._send(Reply(_STATUS[fault], b'{"code":14,"message":"not now"}', retry), None)
        if fault is Fault.HTML:
            return self._send(Reply(200, LOGIN_PAGE, {"Content-Type": "text/html"}), None)
        self._send(server.answer(request), fault)

    def _send(self, reply: Reply, fault: Fault | None) -> None:
        if fault is Fault.CUT_AFTER:
            raise Cut
        body = reply.body
        if fault is Fault.TRUNCATED:
            body = body[: len(body) // 2]
        if fault is Fault.WRONG_BYTES:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault is Fault.CUT_IN_ANSWER:
            self.wfile.write(body[: len(body) // 2])
            raise Cut
        if fault is Fault.TRICKLE:
            for at in range(len(body)):
                self.wfile.write(body[at : at + 1])
                threading.Event().wait(0.02)
            return
        self.wfile.write(body)
