"""Pages over HTTP, of a short history and of a long one: whatever is asked for should take as long in both.

Both histories are served side by side and asked in turn, over connections that are kept.
"""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import urlencode

from bench.platform.figures import table
from bench.platform.load import connect, receive
from bench.platform.served import PREFIX, Home, Kind, Site, serving
from platform_server.state_folder import open_platform
from tests.platform_server.history import History, fill
from tests.platform_server.questions import QUESTIONS, Question

# publications and events
SHORT = (1_000, 1_000)
LONG = (100_000, 1_000_000)
TIMES = 100


@dataclass
class _Side:
    """One history, a connection to its server, and the milliseconds of each question's answers."""

    history: History
    token: str
    connection: socket.socket
    waited: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in QUESTIONS})

    def check(self) -> None:
        """Ask everything once. Raises RuntimeError for an answer with other rows than it must have."""
        for name, asks in QUESTIONS.items():
            question = asks(self.history)
            found = len(json.loads(self._ask(question))["data"][question.name])
            if found != question.rows:
                raise RuntimeError(f"{name}: expected {question.rows} rows, got {found}")

    def time(self, name: str) -> None:
        """Ask once more."""
        question = QUESTIONS[name](self.history)
        started = time.monotonic()
        self._ask(question)
        self.waited[name].append((time.monotonic() - started) * 1000)

    def _ask(self, question: Question) -> bytes:
        content = b"" if question.body is None else json.dumps(question.body).encode()
        query = f"?{urlencode(question.query)}" if question.query else ""
        head = (
            f"{'GET' if question.body is None else 'POST'} {PREFIX}{question.path}{query} HTTP/1.1\r\n"
            f"host: 127.0.0.1\r\nauthorization: Bearer {self.token}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        self.connection.sendall(head.encode() + content)
        return receive(self.connection, 200)


def main(site: Site, runs: int) -> None:
    """A table for each database. Every question is asked a hundred times, however many runs there are."""
    for kind in Kind:
        with ExitStack() as stack:
            homes = [site.home(kind, f"listing-{sizes[0]}") for sizes in (SHORT, LONG)]
            histories = [_filled(home, *sizes) for home, sizes in zip(homes, (SHORT, LONG), strict=True)]
            ports = [stack.enter_context(serving(home, "--workers", "0")).port for home in homes]
            sides = []
            for home, history, port in zip(homes, histories, ports, strict=True):
                # asked at once: the server closes a connection that says nothing for long
                side = _Side(history, home.token, stack.enter_context(connect(port)))
                side.check()
                sides.append(side)
            short, long = sides
            for name in [*QUESTIONS] * TIMES:
                short.time(name)
                long.time(name)
        publications, events = (f"{few:,} and {many:,}" for few, many in zip(SHORT, LONG, strict=True))
        print(f"\nlisting, {kind}: {publications} publications, {events} events; {TIMES} answers each")
        head = ("", "short: median ms", "p99 ms", "long: median ms", "p99 ms", "long / short")
        table(head, [_row(name, short.waited[name], long.waited[name]) for name in QUESTIONS])
        print("  goal: 1, whatever is asked for")


def _filled(home: Home, publications: int, events: int) -> History:
    opened = open_platform(home.folder, database=home.database)
    try:
        return fill(opened, publications, events)
    finally:
        opened.database.close()


def _row(name: str, short: Sequence[float], long: Sequence[float]) -> list[str]:
    cells = [
        f"{found:.1f}"
        for side in (short, long)
        for found in (statistics.median(side), statistics.quantiles(side, n=100, method="inclusive")[98])
    ]
    return [name, *cells, f"{statistics.median(long) / statistics.median(short):.2f}"]
