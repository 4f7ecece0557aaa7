"""The server's memory over a hundred thousand deliveries, which are kept in the database alone."""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from bench.platform.figures import table
from bench.platform.intake import CLIENTS
from bench.platform.load import send
from bench.platform.machine import resident_mib
from bench.platform.served import Hook, Kind, Served, Site, delivery, serving, webhook

STEP = 10_000
STEPS = 10


def main(site: Site, runs: int) -> None:
    """One run, however many are asked for: it is the course of it that matters."""
    rows = []
    for kind in Kind:
        with ExitStack() as stack:
            served = stack.enter_context(serving(site.home(kind, "memory"), "--workers", "0"))
            found = _course(served, webhook(served))
        slope = statistics.linear_regression([STEP * (at + 1) for at in range(STEPS)], found).slope
        rows.append([kind, *(f"{found[at]:.1f}" for at in (0, STEPS // 2 - 1, -1)), f"{slope * 1e6:.0f}"])
    print(f"\nmemory: the server's resident set after so many deliveries, {CLIENTS} senders")
    marks = [f"{STEP * (at + 1):,}: MiB" for at in (0, STEPS // 2 - 1, STEPS - 1)]
    table(("", *marks, "slope, MiB a million"), rows)
    print("  goal: flat")


def _course(platform: Served, hook: Hook) -> list[float]:
    """MiB after each step."""
    found = []
    for step in range(STEPS):
        requests = [delivery(hook, step * STEP + number) for number in range(STEP)]
        send(platform.port, requests, connections=CLIENTS)
        found.append(resident_mib(platform.pid))
    return found
