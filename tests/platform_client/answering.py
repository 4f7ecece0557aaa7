"""An HTTP server on loopback that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.loopback import Handler, LoopbackServer, serving


@dataclass(frozen=True)
class Asked:
    """A request; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> object:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answered:
    """An answer; `content` is sent as JSON unless it is bytes. `cut`: the connection ends instead."""

    status: int
    content: object = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


def data(**fields: object) -> Answered:
    """A success as platforms answer it."""
    return Answered(200, {"success": True, "data": fields})


class AnsweringServer(LoopbackServer):
    """`answer` is asked for each request."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Answered] = lambda asked: Answered(404)

    @property
    def url(self) -> str:
        return self.root

    def play(self, *answers: Answered) -> None:
        """One after the other."""
        following = iter(answers)
        self.answer = lambda asked: next(following)


@contextmanager
def answering_server() -> Iterator[AnsweringServer]:
    """For the length of a test."""
    with serving(AnsweringServer()) as server:
        yield server


class _Handler(Handler):
    server: AnsweringServer

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, body)
        self.server.asked.append(asked)
        answered = self.server.answer(asked)
        if answered.cut:
            self.close_connection = True
            return
        content = answered.content
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(answered.status)
        for name, value in answered.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_PATCH = _handle
