"""What the database and this process's state say, as Prometheus gauges, read when they are asked for.

Every process of one database answers the same. The database is asked at most every ten seconds; while it
does not answer, its gauges are absent and `disk_image_ready{check="database"}` is 0.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from platform_server import stuck
from platform_server.health import OK, Health
from platform_server.metrics import PROCESS
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Job, Publication

log = logging.getLogger(__name__)

_FRESH = 10.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What the database holds: publications by status, jobs by state, and since when the oldest waits."""

    publications: dict[str, int]
    due: int
    leased: int
    later: int
    oldest: datetime | None
    stuck: int
    purge_blocked: int


def count(session: Session, at: datetime) -> Counts:
    """Count; of publications an index alone is read."""
    by_status = select(Publication.status, func.count()).group_by(Publication.status)
    found = dict(iter(session.execute(by_status)))
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
        select(func.count()).where(
            Publication.status == Status.RETIRED, Publication.purge_blocked.is_not(None)
        )
    )
    return Counts(
        {status.value: found.get(status, 0) for status in Status},
        due,
        leased,
        jobs - leased - due,
        oldest,
        stuck.count(session),
        blocked or 0,
    )


# name → what it says, and its label if it has one
_GAUGES: Mapping[str, tuple[str, str | None]] = {
    "disk_image_ready": ("Whether each check of /readyz holds (1) or not (0).", "check"),
    "disk_image_database_connections_used": (
        "Connections to the database that work for somebody in this process now.",
        None,
    ),
    "disk_image_free_bytes": ("Room where uploads are kept.", None),
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
        self._found: tuple[float, Counts] | None = None

    def collect(self) -> Iterator[Metric]:
        """Read them all."""
        checks = self._health.check_now()
        yield _gauge("disk_image_ready", {name: found == OK for name, found in checks.items()})
        pool = self._platform.database.engine.pool
        if isinstance(pool, QueuePool):
            yield _gauge("disk_image_database_connections_used", pool.checkedout())
        with suppress(OSError):
            yield _gauge("disk_image_free_bytes", shutil.disk_usage(self._platform.uploads).free)
        if checks["database"] == OK and (counts := self._counts()) is not None:
            yield from self._database(counts)

    def _database(self, counts: Counts) -> Iterator[Metric]:
        yield _gauge("disk_image_publications", counts.publications)
        jobs = {"due": counts.due, "leased": counts.leased, "later": counts.later}
        yield _gauge("disk_image_queue_jobs", jobs)
        waited = (self._platform.clock() - counts.oldest).total_seconds() if counts.oldest else 0.0
        yield _gauge("disk_image_queue_oldest_seconds", max(0.0, waited))
        yield _gauge("disk_image_publications_stuck", counts.stuck)
        yield _gauge("disk_image_purges_blocked", counts.purge_blocked)

    def _counts(self) -> Counts | None:
        with self._turn:
            now = time.monotonic()
            if self._found is None or now - self._found[0] >= _FRESH:
                at = self._platform.clock()
                try:
                    self._found = now, self._platform.database.read_now(lambda on: count(on, at))
                except Exception:
                    log.exception("the database could not be counted")
                    return None
            return self._found[1]


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


def _gauge(name: str, values: float | Mapping[str, float]) -> Metric:
    text, label = _GAUGES[name]
    if not isinstance(values, Mapping):
        return GaugeMetricFamily(name, text, value=values)
    assert label is not None
    family = GaugeMetricFamily(name, text, labels=(label,))
    for word, value in values.items():
        family.add_metric((word,), value)
    return family
