"""What the intake can't go beyond: HTTP that does nothing with what it gets, and commits without HTTP."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from bench.platform.served import ROOT

# as long as a delivery's row
_BODY = "x" * 500
_INSERT = "INSERT INTO note (body) VALUES "


async def app(scope: Any, receive: Any, send: Any) -> None:
    """ASGI: read the body, answer 202."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    body = json.dumps({"success": True}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def bare_asgi() -> Iterator[tuple[int, int]]:
    """Pid and port of uvicorn on uvloop that serves `app`, without a log of requests."""
    command = [sys.executable, "-m", "uvicorn", f"{__name__}:app", "--loop", "uvloop", "--lifespan", "off"]
    with subprocess.Popen(
        [*command, "--port", "0", "--no-access-log"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                    yield process.pid, int(found[1])
                    return
            raise RuntimeError(f"uvicorn did not start: {said}")
        finally:
            process.terminate()


@contextmanager
def sqlite_commits(file: Path) -> Iterator[Callable[[float], float]]:
    """Rows a second that one connection commits one by one for so many seconds, as durable as the platform's
    own.
    """
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT)")
        yield lambda seconds: _rate(lambda: connection.execute(f"{_INSERT}(?)", (_BODY,)), seconds)
    finally:
        connection.close()


@contextmanager
def postgres_commits(url: str) -> Iterator[Callable[[float], float]]:
    """The same on PostgreSQL."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE note (id bigserial PRIMARY KEY, body text)")
        yield lambda seconds: _rate(lambda: connection.execute(f"{_INSERT}(%s)", (_BODY,)), seconds)


def _rate(commit: Callable[[], object], seconds: float) -> float:
    count, started = 0, time.monotonic()
    while time.monotonic() < started + seconds:
        commit()
        count += 1
    return count / (time.monotonic() - started)
