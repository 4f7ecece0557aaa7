"""How often and how long something is tried again: bounded, with full jitter, and as the registry asks."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import anyio

# Answers that asking again may heal: 408 and 429 (RFC 9110, RFC 6585), and servers that fail or restart.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Policy:
    """The bounds of every exchange with a registry. Times are seconds, sizes bytes, rates bytes a second."""

    # how often one request is sent in all
    attempts: int = 6
    # the first wait's upper end; it doubles up to `longest`
    first: float = 0.5
    longest: float = 20.0
    # how long one operation may wait in all, Retry-After included
    patience: float = 300.0
    connect_timeout: float = 15.0
    # the longest silence inside one exchange
    silence: float = 60.0
    # an exchange may take `silence` plus its bytes at this rate: a trickle ends, a slow line does not
    slowest: float = 16 * 1024
    # one PATCH of a chunked upload, and what a cut costs at most
    chunk: int = 16 * 1024 * 1024
    # blobs under way at once
    parallel: int = 4
    sleep: Callable[[float], Awaitable[None]] = field(default=anyio.sleep, repr=False)
    jitter: Callable[[], float] = field(default=random.random, repr=False)
    now: Callable[[], float] = field(default=time.time, repr=False)

    def budget(self, size: int) -> float:
        """Seconds that one exchange of `size` bytes may take."""
        return self.connect_timeout + self.silence + size / self.slowest


class Attempts:
    """The attempts of one operation: counts them, waits between them, and knows when to give up."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._waited = 0.0
        self.failed = 0

    async def again(self, headers: Mapping[str, str] | None = None) -> bool:
        """Wait before the next attempt; False when there is none left.

        `headers` are those of the answer that failed: a Retry-After that fits into the patience is kept to,
        one that does not ends the attempts, since asking earlier is what the registry forbade.
        """
        self.failed += 1
        if self.failed >= self._policy.attempts:
            return False
        top = min(self._policy.longest, self._policy.first * 2 ** (self.failed - 1))
        wait = max(top * self._policy.jitter(), retry_after(headers or {}, self._policy.now()) or 0.0)
        if self._waited + wait > self._policy.patience:
            return False
        self._waited += wait
        await self._policy.sleep(wait)
        return True

    def progressed(self) -> None:
        """Something lasting was achieved: failures before it no longer count, waits still do."""
        self.failed = 0


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that Retry-After asks for (RFC 9110, 10.2.3: a number or a date); None when it says nothing
    usable.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    until = _seconds(value)
    if until is None:
        return None
    # By the clock that wrote the date, if it is told: ours may be off by hours.
    written = _seconds(headers.get("date", ""))
    return max(0.0, until - (now if written is None else written))


def _seconds(date: str) -> float | None:
    """An HTTP date as seconds since the epoch."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
