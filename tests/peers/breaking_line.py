"""A TCP relay to a server, whose connections break on demand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Line:
    """A TCP relay. While `breaks` has entries, each new connection is cut after so many bytes."""

    host: str
    breaks: list[int] = field(default_factory=list)
    broken: int = 0


@contextmanager
def breaking_line(address: str) -> Iterator[Line]:
    """Relay to `address`; the line's `host` is what clients use."""
    listener = socket.create_server(("127.0.0.1", 0))
    line = Line(f"127.0.0.1:{listener.getsockname()[1]}")
    host, _, port = address.rpartition(":")

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.create_connection((host, int(port)))
            least = line.breaks.pop(0) if line.breaks else None
            for job in ((client, upstream, least), (upstream, client, None)):
                threading.Thread(target=_relay, args=(line, *job), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield line
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _relay(line: Line, source: socket.socket, target: socket.socket, most: int | None) -> None:
    left = most
    with suppress(OSError):
        while piece := source.recv(65536 if left is None else min(65536, left)):
            target.sendall(piece)
            if left is not None:
                left -= len(piece)
                if left == 0:
                    line.broken += 1
                    break
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        if most is None:
            end.close()
