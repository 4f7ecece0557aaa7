"""Retention: how many published images a platform keeps, and what is retired beyond them.

The newest N published images stay; of the others, the default and whatever a node boots stay too. What is
retired is purged after the grace (`purge`), and can come back until then (`defaults.rollback`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, delete, exists, func, select
from sqlalchemy.orm import Session

from platform_server.events import Kind, Told, emit, of_publication
from platform_server.states import Status, Transition, move
from platform_server.tables import Instance, InstanceStatus, Job, NodePlatform, Publication, is_in

SOURCE = "retention_sweep"
# Rows that one transaction moves, so that webhooks need not wait for long.
BATCH = 200


def is_booted() -> ColumnElement[bool]:
    """Whether a node that runs boots the publication."""
    return exists().where(
        Instance.publication_id == Publication.id, Instance.status == InstanceStatus.RUNNING
    )


def surplus(session: Session, platform: NodePlatform) -> Sequence[Publication]:
    """What is published beyond the platform's count, the oldest first, without default and booted ones.

    One that came back by a rollback is as new as that.
    """
    since = func.coalesce(Publication.reactivated_at, Publication.published_at)
    beyond = session.execute(
        select(Publication, is_booted())
        .where(Publication.node_platform_id == platform.id, Publication.status == Status.PUBLISHED)
        .order_by(since.desc(), Publication.id.desc())
        .offset(platform.disk_image_retention_count)
    ).all()
    return [row for row, booted in beyond[::-1] if not booted and row.id != platform.default_publication_id]


def retire_surplus(session: Session, platform: NodePlatform, at: datetime) -> int:
    """Retire what is beyond the platform's count, in this transaction; how many. The platform is held."""
    session.flush()
    rows = surplus(session, platform)
    for row in rows:
        _retire(session, row, platform, at, f"beyond the newest {platform.disk_image_retention_count}")
    return len(rows)


def stale(session: Session, platform: NodePlatform, before: datetime) -> Sequence[Publication]:
    """What failed, or has been verifying, since before that time: nothing will come of it. At most BATCH.

    Each state is asked for on its own, so that it is found by its index.
    """
    found: list[Publication] = []
    for status, since in (
        (Status.FAILED, Publication.failed_at),
        (Status.VERIFYING, Publication.verifying_at),
    ):
        found += session.scalars(
            select(Publication)
            .where(
                Publication.node_platform_id == platform.id,
                is_in(status),
                since <= before,
                ~is_booted(),
            )
            .order_by(since)
            .limit(BATCH - len(found))
        )
    return found


def retire_stale(session: Session, platform: NodePlatform, before: datetime, at: datetime) -> int:
    """Retire those, at most BATCH of them; whoever verifies one loses its lease. The platform is held."""
    rows = stale(session, platform, before)
    for row in rows:
        session.execute(delete(Job).where(Job.id == row.id))
        _retire(session, row, platform, at, f"it was {row.status} for too long")
    return len(rows)


def _retire(session: Session, row: Publication, platform: NodePlatform, at: datetime, reason: str) -> None:
    move(row, Transition.RETIRE, at)
    payload = of_publication(row, platform, action="retired", reason=reason)
    emit(session, row.account_id, Kind.RETENTION_SWEPT, payload, Told(SOURCE, row.correlation_id), at)
