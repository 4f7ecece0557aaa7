"""How often something may happen: token buckets, in this process's memory, at most so many of them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

_MOST_BUCKETS = 10_000


class Rate:
    """At most `burst` at once and `per_second` in the long run, for each key."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        # key → what is left, and since when; the longest unused first
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def left(self, key: Hashable) -> float:
        """How many more the key may do now."""
        left, since = self._buckets.get(key, (float(self._burst), self._clock()))
        return min(self._burst, left + (self._clock() - since) * self._per_second)

    def take(self, key: Hashable) -> bool:
        """Take one; False when there is none left."""
        left = self.left(key)
        taken = left >= 1
        self._buckets[key] = (left - taken, self._clock())
        self._buckets.move_to_end(key)
        if len(self._buckets) > _MOST_BUCKETS:
            self._buckets.popitem(last=False)
        return taken

    @property
    def wait(self) -> float:
        """Seconds until an empty bucket has one again."""
        return 1 / self._per_second
