"""Serving: uvicorn with the platform's limits, on a socket that is bound before anything is said."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from platform_server.app import create_app
from platform_server.errors import StateError
from platform_server.slow_clients import impatient
from platform_server.state_folder import Platform

_BACKLOG = 2048
_SHUTDOWN_SECONDS = 30


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises StateError when it can't be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        raise StateError(
            f"can't listen on {host} port {port}: {error.strerror or error}", "choose another --port"
        ) from None
    return listening


def server(platform: Platform, started: Callable[[], None]) -> uvicorn.Server:
    """The server, not yet running; it calls `started` when it answers."""
    limits = platform.settings.limits
    config = uvicorn.Config(
        create_app(platform),
        http=impatient(limits.header_seconds),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(platform.settings.proxies),
        forwarded_allow_ips=list(platform.settings.proxies),
        timeout_keep_alive=limits.keep_alive_seconds,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=limits.header,
        lifespan="on",
    )
    return _Server(config, started)


def serve(platform: Platform, listening: socket.socket, started: Callable[[], None]) -> None:
    """Serve until a signal ends it; requests under way are answered first."""
    running = server(platform, started)
    try:
        running.run(sockets=[listening])
    finally:
        platform.database.close()
    if not running.started:
        raise StateError("the platform did not start", "its log above has the reason")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._say = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._say()
