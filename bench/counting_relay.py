"""A TCP relay to a server, which counts what clients send."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class Relay:
    """`host` is what clients use; `sent` counts bytes from them to the server."""

    host: str
    sent: int = 0


@contextmanager
def counting_relay(address: str) -> Iterator[Relay]:
    """Relay to `address` (host:port) from a port of 127.0.0.1, until the block and all connections end."""
    host, _, port = address.rpartition(":")
    counting = threading.Lock()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as upstream:
                back = threading.Thread(target=_copy, args=(upstream, self.request, None))
                back.start()
                _copy(self.request, upstream, count)
                back.join()

    def count(size: int) -> None:
        with counting:
            relay.sent += size

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = False

    with Server(("127.0.0.1", 0), Handler) as server:
        relay = Relay(f"127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield relay
        finally:
            server.shutdown()
            thread.join()


def _copy(source: socket.socket, target: socket.socket, count: Callable[[int], None] | None) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
            if count is not None:
                count(len(piece))
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
