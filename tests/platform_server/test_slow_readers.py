"""Clients that do not read what they are answered hold nothing for long; who reads slowly gets it all."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.platform_server.made import Made
from tests.platform_server.process import Process, process

PATH = "/api/v1/system/openapi.json"
ASK = f"GET {PATH} HTTP/1.1\r\nHost: a\r\n".encode()
QUICK = ("--limit", "read_seconds=1", "--limit", "keep_alive_seconds=1")


def _connected(port: int) -> socket.socket:
    """A connection with hardly any room for what comes."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    made.settimeout(60)
    made.connect(("127.0.0.1", port))
    return made


def _sockets(served: Process) -> int:
    """How many the server has open; files of its database come and go."""
    found = 0
    for each in Path(f"/proc/{served.popen.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += os.readlink(each).startswith("socket:")
    return found


@pytest.mark.parametrize("end", [b"\r\n", b"Connection: close\r\n\r\n"], ids=["kept", "closed"])
def test_who_does_not_read_is_cut_off(
    made_on_sqlite: Made, tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None], end: bytes
) -> None:
    """While the server writes, and when it has closed the connection: the rest waits to be read."""
    with process(made_on_sqlite.copied(tmp_path / "state"), *QUICK) as served, ExitStack() as stack:
        before = _sockets(served)
        held = [stack.enter_context(_connected(served.port)) for _ in range(5)]
        for each in held:
            each.sendall((ASK + b"\r\n") * 40 + ASK + end)
        # each is being answered
        assert all(each.recv(1) == b"H" for each in held)
        wait_for(lambda: _sockets(served) <= before)


def test_who_reads_slowly_gets_it_all(made_on_sqlite: Made, tmp_path: Path) -> None:
    count = 60
    with (
        process(made_on_sqlite.copied(tmp_path / "state"), *QUICK) as served,
        _connected(served.port) as reading,
    ):
        reading.sendall((ASK + b"\r\n") * (count - 1) + ASK + b"Connection: close\r\n\r\n")
        began, taken = time.monotonic(), 0
        while part := reading.recv(32768):
            taken += len(part)
            if time.monotonic() < began + 6:
                # some 40 KiB a second, of which the kernel holds megabytes
                time.sleep(len(part) / 40_000)
        one = len(httpx.get(f"{served.url}{PATH}", trust_env=False, timeout=60).content)
        assert taken > count * one
