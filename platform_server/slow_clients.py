"""Connections that take too much: those whose requests arrive too slowly, for which uvicorn itself would
wait without end, and more at once than one address may have.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from platform_server.metrics import LIMITED
from platform_server.proxies import Proxies, sender_of
from platform_server.settings import Limits


def impatient(limits: Limits, proxies: Proxies) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, where a request's headers must be complete `header_seconds` after the connection
    was made, or after their first byte, and what is left of a body as long after the answer; and where an
    address that is no proxy's has at most `address_connections`.
    """
    connections: Counter[str] = Counter()

    class Impatient(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _counted: str | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start()
            address = self.client[0] if self.client else None
            if address is None or address in proxies:
                return
            self._counted = sender = sender_of(address)
            connections[sender] += 1
            if connections[sender] > limits.address_connections:
                LIMITED.labels("address_connections").inc()
                transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE or self._is_answered_early():
                self._start()
            else:
                self._stop()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._is_answered_early():
                self._start()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            if self._counted is not None:
                connections[self._counted] -= 1
                if not connections[self._counted]:
                    del connections[self._counted]
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

    return Impatient
