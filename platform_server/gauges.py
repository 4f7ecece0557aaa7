"""What the database and this process's state say, as Prometheus gauges, read when they are asked for.

Every process of one database answers the same. The database is asked at most every ten seconds, and for a
hundredth of the time at most: to count what is there takes the longer the more there is. While it does not
answer, its gauges are absent and `disk_image_ready{check="database"}` is 0.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from platform_server import stuck
from platform_server.health import OK, Health
from platform_server.metrics import PROCESS
from platform_server.state_folder import Platform, backup_mark
from platform_server.states import Status
from platform_server.tables import Job, Publication

log = logging.getLogger(__name__)

# Seconds, and by how many times what counting took, before it is done again.
_FRESH, _REST = 10.0, 100.0
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Counts:
    """What waits: jobs by state, since when the oldest does, and what makes no progress."""

    due: int
    leased: int
    later: int
    oldest: datetime | None
    stuck: int
    purge_blocked: int


def by_status(session: Session) -> Mapping[str, int]:
    """How many publications there are in each state; an index alone is read."""
    query = select(Publication.status, func.count()).group_by(Publication.status)
    found = dict(iter(session.execute(query)))
    return {status.value: found.get(status, 0) for status in Status}


def count(session: Session, at: datetime) -> Counts:
    """Count what waits, and pass over all that is done."""
    is_leased, is_due = Job.lease.is_not(None) & (Job.available_at > at), Job.available_at <= at
    leased, due, jobs, oldest = session.execute(
        select(
            func.count(case((is_leased, 1))),
            func.count(case((is_due, 1))),
            func.count(),
            func.min(Job.created_at),
        )
    ).one()
    blocked = session.scalar(
        # whatever becomes of a retired publication takes it away
        select(func.count(Publication.id)).where(Publication.purge_blocked.is_not(None))
    )
    return Counts(due, leased, jobs - leased - due, oldest, stuck.count(session), blocked or 0)


class _Kept(Generic[_Value]):
    """What was asked for, kept for a while."""

    def __init__(self, ask: Callable[[], _Value]) -> None:
        self._ask = ask
        self._until = float("-inf")
        self._value: _Value | None = None

    def get(self) -> _Value:
        """The value; raises what asking raises."""
        began = time.monotonic()
        if self._value is None or began >= self._until:
            self._value = self._ask()
            ended = time.monotonic()
            self._until = ended + max(_FRESH, (ended - began) * _REST)
        return self._value


# name → what it says, and its label if it has one
_GAUGES: Mapping[str, tuple[str, str | None]] = {
    "disk_image_ready": ("Whether each check of /readyz holds (1) or not (0).", "check"),
    "disk_image_database_connections_used": (
        "Connections to the database that work for somebody in this process now.",
        None,
    ),
    "disk_image_free_bytes": ("Room where uploads are kept.", None),
    "disk_image_last_backup_timestamp_seconds": (
        "The state that the newest whole backup made with this state folder holds; 0 when there was none.",
        None,
    ),
    "disk_image_publications": ("Publications by status.", "status"),
    "disk_image_queue_jobs": (
        "Publications to verify: due now, leased to a worker, or to be tried later.",
        "state",
    ),
    "disk_image_queue_oldest_seconds": (
        "How long the oldest publication without a verdict has waited; 0 when none waits.",
        None,
    ),
    "disk_image_publications_stuck": ("Publications that were reported as stuck, and still are.", None),
    "disk_image_purges_blocked": ("Retired publications whose image the registry would not delete.", None),
}


class Gauges(Collector):
    """The gauges of one platform."""

    def __init__(self, platform: Platform, health: Health) -> None:
        self._platform = platform
        self._health = health
        self._turn = threading.Lock()
        read, clock = platform.database.read_now, platform.clock
        self._waiting = _Kept(lambda: read(lambda on: count(on, clock())))
        self._statuses = _Kept(lambda: read(by_status))

    def collect(self) -> Iterator[Metric]:
        """Read them all."""
        checks = self._health.check_now()
        yield _gauge("disk_image_ready", {name: found == OK for name, found in checks.items()})
        pool = self._platform.database.engine.pool
        if isinstance(pool, QueuePool):
            yield _gauge("disk_image_database_connections_used", pool.checkedout())
        with suppress(OSError):
            yield _gauge("disk_image_free_bytes", shutil.disk_usage(self._platform.uploads).free)
        yield _gauge("disk_image_last_backup_timestamp_seconds", _last_backup(self._platform))
        if checks["database"] == OK and (found := self._found()) is not None:
            yield from self._database(*found)

    def _database(self, counts: Counts, statuses: Mapping[str, int]) -> Iterator[Metric]:
        yield _gauge("disk_image_publications", statuses)
        jobs = {"due": counts.due, "leased": counts.leased, "later": counts.later}
        yield _gauge("disk_image_queue_jobs", jobs)
        waited = (self._platform.clock() - counts.oldest).total_seconds() if counts.oldest else 0.0
        yield _gauge("disk_image_queue_oldest_seconds", max(0.0, waited))
        yield _gauge("disk_image_publications_stuck", counts.stuck)
        yield _gauge("disk_image_purges_blocked", counts.purge_blocked)

    def _found(self) -> tuple[Counts, Mapping[str, int]] | None:
        with self._turn:
            try:
                return self._waiting.get(), self._statuses.get()
            except Exception:
                log.exception("the database could not be counted")
                return None


def registry_of(platform: Platform, health: Health) -> CollectorRegistry:
    """Everything that one platform's process says."""
    registry = CollectorRegistry()
    registry.register(PROCESS)
    registry.register(Gauges(platform, health))
    return registry


def described() -> Iterator[Metric]:
    """Every metric of the platform's own, without values."""
    yield from PROCESS.collect()
    for name, (text, label) in _GAUGES.items():
        yield GaugeMetricFamily(name, text, labels=(label,) if label else None)


def _last_backup(platform: Platform) -> float:
    try:
        return backup_mark(platform.folder).stat().st_mtime
    except OSError:
        return 0.0


def _gauge(name: str, values: float | Mapping[str, float]) -> Metric:
    text, label = _GAUGES[name]
    if not isinstance(values, Mapping):
        return GaugeMetricFamily(name, text, value=values)
    assert label is not None
    family = GaugeMetricFamily(name, text, labels=(label,))
    for word, value in values.items():
        family.add_metric((word,), value)
    return family
