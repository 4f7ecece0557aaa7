"""Connections that take too much: those whose requests arrive too slowly, for which uvicorn itself would
wait without end, and more at once than one address may have.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import h11
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from platform_server.metrics import LIMITED
from platform_server.proxies import Proxies, sender_of
from platform_server.settings import Limits
from platform_server.slow_readers import read_in_time

_CROWDED = JSONResponse(
    {"success": False, "error": "too many connections at once", "hint": "send the request again later"},
    503,
    {"Retry-After": "1", "Connection": "close"},
)


async def _crowded(scope: Any, receive: Any, send: Any) -> None:
    LIMITED.labels("connections").inc()
    await _CROWDED(scope, receive, send)


class Senders:
    """How many connections each address has that is no proxy's, and whether these are too many."""

    def __init__(self, limits: Limits, proxies: Proxies) -> None:
        self._most = limits.address_connections
        self._proxies = proxies
        self._connections: Counter[str] = Counter()

    def add(self, address: str | None) -> str | None:
        """Count one more connection; whom it counts for, None where nobody counts."""
        if address is None or address in self._proxies:
            return None
        sender = sender_of(address)
        self._connections[sender] += 1
        return sender

    def has_too_many(self, sender: str | None) -> bool:
        """Whether one has more than it may have, which is a limit reached."""
        if sender is None or self._connections[sender] <= self._most:
            return False
        LIMITED.labels("address_connections").inc()
        return True

    def remove(self, sender: str | None) -> None:
        """Count one connection less."""
        if sender is not None:
            self._connections[sender] -= 1
            if not self._connections[sender]:
                del self._connections[sender]


def impatient(limits: Limits, senders: Senders) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, where a request's headers must be complete `header_seconds` after the connection
    was made, or after their first byte, and what is left of a body as long after the answer; where an
    address that is no proxy's has at most `address_connections`, and all have at most `connections`.
    """

    class Impatient(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        # whom it counts for; whoever counts before it is made says so
        counted: str | None = None
        is_counted = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._served = self.app
            self._start()
            if self.is_counted:
                return
            self.counted = senders.add(self.client[0] if self.client else None)
            if senders.has_too_many(self.counted):
                transport.close()

        def data_received(self, data: bytes) -> None:
            self.app = _crowded if len(self.connections) > limits.connections else self._served
            super().data_received(data)
            if self.conn.their_state is h11.IDLE or self._is_answered_early():
                self._start()
            else:
                self._stop()

        def _should_upgrade(self) -> bool:
            # Nothing else is spoken, and who offers it is answered in HTTP/1.1 (RFC 9110, 7.8).
            return False

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._is_answered_early():
                self._start()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            senders.remove(self.counted)
            super().connection_lost(exc)

        def _is_answered_early(self) -> bool:
            """Whether there was an answer before all of the body."""
            return self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete

        def _start(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(limits.header_seconds, self._give_up)

        def _stop(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            self._deadline = None
            LIMITED.labels("header_seconds").inc()
            self.transport.close()

    return read_in_time(Impatient, limits)
