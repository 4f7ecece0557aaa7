"""The real server on loopback, in a thread of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import uvicorn

from platform_server.listening import listen
from platform_server.serve import server
from platform_server.state_folder import Platform


@contextmanager
def serving(platform: Platform, *, public: bool = False) -> Iterator[tuple[str, int]]:
    """Host and port of the platform, served while the block lasts; if `public`, its URL names them."""
    started = threading.Event()
    listening = listen("127.0.0.1", 0)
    if public:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        platform = replace(platform, settings=replace(platform.settings, public_url=url))
    running: uvicorn.Server = server(platform, started.set)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        assert started.wait(30), "the server did not start"
        yield listening.getsockname()
    finally:
        running.should_exit = True
        thread.join(60)
        listening.close()
    assert not thread.is_alive(), "the server did not stop"


def talk(address: tuple[str, int], content: bytes, seconds: float = 20.0) -> bytes:
    """Send bytes on a connection, and everything that comes back until it is closed."""
    with socket.create_connection(address, timeout=seconds) as connection:
        connection.sendall(content)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
        return answer
