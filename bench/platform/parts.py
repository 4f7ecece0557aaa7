"""The parts of the platform's benchmark, and what they share: one folder and one PostgreSQL server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.platform import backlog, intake, listing, machine, memory, profile
from bench.platform.served import Site, site

PARTS: Mapping[str, Callable[[Site, int], None]] = {
    "intake": intake.main,
    "backlog": backlog.main,
    "listing": listing.main,
    "memory": memory.main,
    "profile": profile.main,
}
# Memory takes minutes of its own, and the profile another program: they are run by name.
USUAL = ("intake", "backlog", "listing")


def main(runs: int, parts: Sequence[str]) -> None:
    """Run these parts one after the other."""
    print(f"\nplatform: {machine.described()}")
    with site() as made:
        for part in parts:
            PARTS[part](made, runs)
