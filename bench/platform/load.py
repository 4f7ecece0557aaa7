"""Requests over connections that are kept, and how long each waited for its answer.

One thread on bare sockets with requests made beforehand, so that the client takes as little as possible of
the cores that it shares with the server.
"""

from __future__ import annotations

import re
import select
import socket
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_SILENCE = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """What came of some requests: seconds for each answer, for all, and of the client's CPU."""

    waited: Sequence[float]
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.waited) / self.seconds

    def milliseconds(self, percent: int) -> float:
        """Within that time so many of a hundred were answered."""
        return statistics.quantiles(self.waited, n=100, method="inclusive")[percent - 1] * 1000


def send(port: int, requests: Sequence[bytes], *, connections: int, rate: float | None = None) -> Load:
    """Send all requests to 127.0.0.1.

    Without a rate, each connection sends its next request when it has the answer to the last one. With one,
    requests are due by a schedule, and each waits from the moment it was due: one that finds every
    connection taken counts the time until there is one, so that a stall is seen by all that came during it.

    Raises RuntimeError for another status than 202, and for silence.
    """
    idle = deque(connect(port) for _ in range(connections))
    busy: dict[socket.socket, float] = {}
    waited: list[float] = []
    sent = 0
    before, started = time.process_time(), time.monotonic()
    try:
        while len(waited) < len(requests):
            due = started
            while idle and sent < len(requests):
                due = time.monotonic() if rate is None else started + sent / rate
                if due > time.monotonic():
                    break
                connection = idle.popleft()
                connection.sendall(requests[sent])
                busy[connection] = due
                sent += 1
            comes = rate is not None and idle and sent < len(requests)
            wait = max(0.0, due - time.monotonic()) if comes else _SILENCE
            ready, _, _ = select.select(list(busy), (), (), wait)
            if not ready and not comes:
                raise RuntimeError(f"no answer for {_SILENCE:.0f} s")
            for connection in ready:
                receive(connection, 202)
                waited.append(time.monotonic() - busy.pop(connection))
                idle.append(connection)
        return Load(waited, time.monotonic() - started, time.process_time() - before)
    finally:
        for connection in (*idle, *busy):
            connection.close()


def connect(port: int) -> socket.socket:
    """A connection to 127.0.0.1."""
    connection = socket.create_connection(("127.0.0.1", port), _SILENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def receive(connection: socket.socket, status: int) -> bytes:
    """The body of one answer. Raises RuntimeError for another status."""
    answer = b""
    while part := connection.recv(1 << 18):
        answer += part
        head, found, body = answer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n") if found else None
        if length is not None and len(body) >= int(length[1]):
            if not head.startswith(b"HTTP/1.1 %d " % status):
                raise RuntimeError(f"expected {status}, got {answer.decode(errors='replace')}")
            return body
    raise RuntimeError(f"the connection was closed after {answer.decode(errors='replace')!r}")
