"""What the tests' HTTP servers on loopback have in common: real sockets, a thread each, TLS by choice, and
connections that can be cut.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar


class LoopbackServer(ThreadingHTTPServer):
    """At a free port of 127.0.0.1; `tls` are certificate and key."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: type[BaseHTTPRequestHandler], tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.scheme = "https" if tls else "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def host(self) -> str:
        """`127.0.0.1:<port>`."""
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def root(self) -> str:
        """Its URL, without a path."""
        return f"{self.scheme}://{self.host}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are part of the tests."""


_Server = TypeVar("_Server", bound=LoopbackServer)


@contextmanager
def serving(made: _Server) -> Iterator[_Server]:
    """The server, which answers for the length of a test."""
    with made as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Cut(Exception):
    """Close the connection without another word."""


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 that keeps quiet; clients that go are no error."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 20

    def handle_one_request(self) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            super().handle_one_request()
            return
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def cut(self) -> None:
        """End the connection now."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
