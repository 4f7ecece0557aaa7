"""TLS handshakes under way: connections like any other for the limit of an address, and bounded in time.

The event loop's own server shows nobody a connection before its handshake is done, so one address could have
as many half ones as there are descriptors. Here each is accepted, counted, and then has its handshake.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from platform_server.metrics import LIMITED
from platform_server.settings import Limits
from platform_server.slow_clients import Senders

log = logging.getLogger(__name__)

# There is no descriptor, or no memory, for one more connection.
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE = 0.5

# A connection's protocol, which counts for that sender until it is lost.
Connected = Callable[[str | None], asyncio.Protocol]


class Handshakes:
    """Those of one server, with the certificate of `context`."""

    def __init__(self, context: ssl.SSLContext, limits: Limits, senders: Senders) -> None:
        self._context = context
        self._seconds = limits.handshake_seconds
        self._senders = senders
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, listening: socket.socket, connected: Connected) -> None:
        """Accept connections; `connected` makes the protocol of each."""
        listening.setblocking(False)
        self._start(self._accept(listening, connected))

    def stop(self) -> None:
        """Accept no other, and end the handshakes that are under way."""
        for each in self._tasks:
            each.cancel()

    async def _accept(self, listening: socket.socket, connected: Connected) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:
                # any other is that connection's own
                if error.errno in _FULL:
                    log.warning("no connection can be accepted: %s", error.strerror)
                    await asyncio.sleep(_PAUSE)
                continue
            sender = self._senders.add(address[0] if isinstance(address, tuple) else None)
            if self._senders.has_too_many(sender):
                self._senders.remove(sender)
                connection.close()
            else:
                self._start(self._shake(connection, sender, connected))

    async def _shake(self, connection: socket.socket, sender: str | None, connected: Connected) -> None:
        is_done = False
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connected(sender),
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._seconds,
            )
            is_done = True
        except OSError as error:
            # so it is raised for what took too long, and for nothing else
            if isinstance(error, ConnectionAbortedError):
                LIMITED.labels("handshake_seconds").inc()
        finally:
            if not is_done:
                self._senders.remove(sender)
                connection.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
