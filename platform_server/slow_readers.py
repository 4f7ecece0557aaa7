"""Connections whose clients do not take what they are answered: uvicorn would wait without end for them to
read, also after it has closed them.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios

from uvicorn.protocols.http.h11_impl import H11Protocol

from platform_server.metrics import LIMITED
from platform_server.settings import Limits

# Bytes that a client takes in `read_seconds` at least, of what waits for it.
_LEAST = 16 * 1024


def read_in_time(protocol: type[H11Protocol], limits: Limits) -> type[H11Protocol]:
    """The protocol; a connection is cut off when its client takes next to nothing for `read_seconds` of an
    answer that can't be written on, or whose connection is being closed.
    """

    class ReadInTime(protocol):  # type: ignore[valid-type, misc]
        _patience: asyncio.TimerHandle | None = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait()

        def resume_writing(self) -> None:
            super().resume_writing()
            if not self.transport.is_closing():
                self._stop_waiting()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                self._wait()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._patience is None:
                left = _left(self.transport)
                self._patience = self.loop.call_later(limits.read_seconds, self._look, left)

        def _stop_waiting(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def _look(self, before: int) -> None:
            self._patience = None
            if _left(self.transport) <= before - _LEAST:
                self._wait()
            else:
                LIMITED.labels("read_seconds").inc()
                self.transport.abort()

    return ReadInTime


def _left(transport: asyncio.Transport) -> int:
    """How many bytes were written and not taken yet, in here and in the kernel (tcp(7), SIOCOUTQ)."""
    try:
        found = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    queued: int = struct.unpack("i", found)[0]
    return queued + transport.get_write_buffer_size()
