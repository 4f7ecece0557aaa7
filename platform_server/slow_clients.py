"""Connections whose requests arrive too slowly are closed: uvicorn itself waits without end for headers, and
for the rest of a body that was answered already.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def impatient(header_seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, where a request's headers must be complete `header_seconds` after the connection
    was made, or after their first byte, and what is left of a body as long after the answer.
    """

    class Impatient(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start()

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
            super().connection_lost(exc)

        def _is_answered_early(self) -> bool:
            """Whether there was an answer before all of the body."""
            return self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete

        def _start(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(header_seconds, self._give_up)

        def _stop(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            self._deadline = None
            self.transport.close()

    return Impatient
