"""A sleep that does not."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Waits:
    """Remembers for how long it would have slept."""

    slept: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
