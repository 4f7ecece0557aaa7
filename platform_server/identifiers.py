"""Row ids: UUIDs of version 7 (RFC 9562, 5.7), so that the order of ids is the order of creation."""

from __future__ import annotations

import secrets
import threading
import time
from uuid import UUID

# the year 4199
_LATEST = 1 << 58
_lock = threading.Lock()
_last = 0


def new_id() -> UUID:
    """A new id, greater than every earlier one of this process.

    The 12 bits after the version are a fraction of the millisecond (RFC 9562, 6.2, method 3): about 244 ns.
    """
    global _last
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    with _lock:
        _last = ticks = max(_last + 1, (milliseconds << 12) | (rest * 4096 // 1_000_000))
    value = (ticks >> 12) << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64 | 0b10 << 62 | secrets.randbits(62)
    return UUID(int=value)


def continue_after(earlier: UUID) -> None:
    """Have every new id be greater than that one, though a clock was set back since it was made. One that no
    clock made is left alone.
    """
    global _last
    ticks = (earlier.int >> 80) << 12 | (earlier.int >> 64 & 0xFFF)
    if earlier.version == 7 and ticks < _LATEST:
        with _lock:
            _last = max(_last, ticks)
