"""The clock that tests set."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class Clock:
    """Time as a test says."""

    time: datetime = START

    def __call__(self) -> datetime:
        return self.time

    def pass_by(self, **time: float) -> datetime:
        self.time += timedelta(**time)
        return self.time
