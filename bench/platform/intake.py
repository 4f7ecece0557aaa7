"""Webhooks that the platform accepts a second and how long each waits for its answer, where an answer means
that the row is on the disk. Nothing is verified meanwhile, but for one closed loop on a platform of its own,
whose worker refuses what comes as fast as it can.

Closed loop: sixteen senders, each with its next delivery when it has an answer. Open loop: deliveries come
by a schedule, whether or not the earlier ones have been answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.platform.ceilings import bare_asgi, postgres_commits, sqlite_commits
from bench.platform.figures import ratio, spread, table
from bench.platform.load import Load, send
from bench.platform.machine import cpu
from bench.platform.served import Kind, Site, delivery, serving, webhook

CLIENTS = 16
CLOSED = 2000
RATE = 500.0
OPEN = 3000
# as many as can be on their way while one answer takes a fifth of a second
_OPEN_CONNECTIONS = 100
_COMMITTING = 1.0
_ASGI = "bare ASGI"
_HEAD = ("", "a second", "p50 ms", "p99 ms", "cpu ms: server", "database", "client")


@dataclass(frozen=True)
class _Sample:
    """One run, and the CPU milliseconds that each delivery took of server and database."""

    load: Load
    server: float
    database: float


@dataclass
class _Target:
    """What takes deliveries, whose CPU that takes, and what came of it."""

    port: int
    pid: int
    database: int | None
    request: Callable[[int], bytes]
    number: int = 0
    closed: list[_Sample] = field(default_factory=list)
    open: list[_Sample] = field(default_factory=list)

    def sample(self, count: int, connections: int, rate: float | None = None) -> _Sample:
        """Deliveries that were never sent before."""
        requests = [self.request(self.number + each) for each in range(count)]
        self.number += count
        before = self._used()
        load = send(self.port, requests, connections=connections, rate=rate)
        server, database = (
            (now - then) / count * 1000 for now, then in zip(self._used(), before, strict=True)
        )
        return _Sample(load, server, database)

    def _used(self) -> tuple[float, float]:
        return cpu(self.pid), 0.0 if self.database is None else cpu(self.database, children=True)


def main(site: Site, runs: int) -> None:
    """Every target in turn, so that they share what the machine does meanwhile."""
    commits: dict[Kind, list[float]] = {kind: [] for kind in Kind}
    with ExitStack() as stack:
        committing = {
            Kind.SQLITE: stack.enter_context(sqlite_commits(site.folder / "commits.db")),
            Kind.POSTGRES: stack.enter_context(postgres_commits(site.postgres.url(site.postgres.create()))),
        }
        targets: dict[str, _Target] = {kind: _platform(stack, site, kind) for kind in Kind}
        pid, port = stack.enter_context(bare_asgi())
        targets[_ASGI] = _Target(port, pid, None, targets[Kind.SQLITE].request)
        for target in targets.values():
            target.sample(200, CLIENTS)
        for _ in range(runs):
            for target in targets.values():
                target.closed.append(target.sample(CLOSED, CLIENTS))
            for kind in Kind:
                targets[kind].open.append(targets[kind].sample(OPEN, _OPEN_CONNECTIONS, RATE))
                commits[kind].append(committing[kind](_COMMITTING))
    _report(targets, commits, runs)
    _report_refusing({kind: _refusing(site, kind, runs) for kind in Kind}, runs)


def _refusing(site: Site, kind: Kind, runs: int) -> _Target:
    """The closed loop, by a target of its own: its worker goes on when the deliveries have ended."""
    with ExitStack() as stack:
        target = _platform(stack, site, kind, workers=1)
        target.sample(200, CLIENTS)
        target.closed += [target.sample(CLOSED, CLIENTS) for _ in range(runs)]
        return target


def _platform(stack: ExitStack, site: Site, kind: Kind, workers: int = 0) -> _Target:
    served = stack.enter_context(serving(site.home(kind, f"intake-{workers}"), "--workers", str(workers)))
    hook = webhook(served)
    database = site.postgres.process.pid if kind is Kind.POSTGRES else None
    return _Target(served.port, served.pid, database, lambda number: delivery(hook, number))


def _report(targets: dict[str, _Target], commits: dict[Kind, list[float]], runs: int) -> None:
    print(f"\nintake: {CLIENTS} senders that wait for each answer (median, least and most of {runs} runs)")
    rows = [_row(name, target.closed) for name, target in targets.items()]
    rows += [[f"bare commits, {kind}", spread(commits[kind]), *[""] * 5] for kind in Kind]
    table(_HEAD, rows)
    for kind in Kind:
        rates = _rates(targets[kind].closed)
        ratio(f"{kind} / {_ASGI}", rates, _rates(targets[_ASGI].closed))
        ratio(f"{kind} / bare commits, {kind}", rates, commits[kind])
    print("  goal: 500 a second or more, p99 50 ms or less, on 2 idle cores")
    print(f"\nintake: {RATE:.0f} a second by a schedule, waits counted from it ({OPEN} deliveries a run)")
    table(_HEAD, [_row(kind, targets[kind].open) for kind in Kind])
    print("  goal: p99 50 ms or less, on 2 idle cores")


def _report_refusing(targets: dict[Kind, _Target], runs: int) -> None:
    print(f"\nintake: the same closed loop, while one worker refuses images ({runs} runs)")
    table(_HEAD, [_row(kind, target.closed) for kind, target in targets.items()])


def _row(name: str, samples: Sequence[_Sample]) -> list[str]:
    loads = [each.load for each in samples]
    return [
        name,
        spread(_rates(samples)),
        spread([load.milliseconds(50) for load in loads], 1),
        spread([load.milliseconds(99) for load in loads], 1),
        spread([each.server for each in samples], 2),
        spread([each.database for each in samples], 2) if any(each.database for each in samples) else "",
        spread([load.cpu / len(load.waited) * 1000 for load in loads], 2),
    ]


def _rates(samples: Sequence[_Sample]) -> list[float]:
    return [each.load.rate for each in samples]
