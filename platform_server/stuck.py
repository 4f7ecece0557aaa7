"""Publications that are not finished for too long: found, told once, and marked in every list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import Session

from platform_server.events import Kind, Told, emit, of_publication
from platform_server.settings import Schedule
from platform_server.states import OPEN, Status
from platform_server.tables import NodePlatform, Publication

# Rows that one transaction tells of, so that webhooks need not wait for long.
BATCH = 200

ADVICE: Mapping[Status, str] = {
    Status.QUEUED: "no worker took it: see that the platform is served with workers, and its log",
    Status.VERIFYING: "no verdict: see the platform's log, and that the image's registry answers",
    Status.AWAITING_UPLOAD: "the image did not come: run the upload again, from its start",
}


def since(row: Publication) -> datetime | None:
    """When a row that is not finished came to its state; None for any other."""
    if row.status not in OPEN:
        return None
    entered = {
        Status.VERIFYING: row.verifying_at,
        Status.AWAITING_UPLOAD: row.awaiting_upload_at,
    }
    return entered.get(row.status) or row.created_at


def advice(row: Publication) -> str | None:
    """What to do about a row that was found stuck in its present state; None for any other."""
    entered = since(row)
    if entered is None or row.stuck_reported_at is None or row.stuck_reported_at < entered:
        return None
    return ADVICE[row.status]


def newly(session: Session, schedule: Schedule, at: datetime) -> Sequence[UUID]:
    """Those that are stuck and that nobody was told of, of every account: all that waits is looked at."""
    entered = {
        Status.QUEUED: Publication.created_at,
        Status.VERIFYING: Publication.verifying_at,
        Status.AWAITING_UPLOAD: Publication.awaiting_upload_at,
    }
    told = Publication.stuck_reported_at
    are_late = (
        (Publication.status == status)
        & (came <= _limit(schedule, status, at))
        & (told.is_(None) | (told < came))
        for status, came in entered.items()
    )
    return session.scalars(select(Publication.id).where(or_(*are_late)).order_by(Publication.id)).all()


def report(session: Session, schedule: Schedule, ids: Sequence[UUID], at: datetime) -> int:
    """Tell of those of the ids that are still stuck, and that nobody told of meanwhile; how many."""
    rows = session.execute(
        select(Publication, NodePlatform)
        .join(NodePlatform, NodePlatform.id == Publication.node_platform_id)
        .where(Publication.id.in_(ids))
        .order_by(Publication.id)
        # Another process that looks at the same time tells of the others.
        .with_for_update(of=Publication, skip_locked=True)
    )
    told = 0
    for row, platform in rows.all():
        entered = since(row)
        if entered is None or entered > _limit(schedule, row.status, at) or advice(row) is not None:
            continue
        waited: timedelta = at - entered
        row.stuck_reported_at = at
        payload = of_publication(
            row,
            platform,
            status=row.status,
            waited_seconds=int(waited.total_seconds()),
            hint=ADVICE[row.status],
        )
        emit(session, row.account_id, Kind.STUCK, payload, Told("stuck_watch", row.correlation_id), at)
        told += 1
    return told


def is_stuck() -> ColumnElement[bool]:
    """Whether a publication was told of and is still in the state that it was stuck in. An index has those
    that were told of and did not go on: it is the only one that helps.
    """
    entered = case(
        {
            Status.QUEUED: Publication.created_at,
            Status.VERIFYING: Publication.verifying_at,
            Status.AWAITING_UPLOAD: Publication.awaiting_upload_at,
        },
        value=Publication.status,
    )
    told = Publication.stuck_reported_at
    return and_(told.is_not(None), told >= entered)


def count(session: Session, *where: ColumnElement[bool]) -> int:
    """How many there are."""
    return session.scalar(select(func.count()).select_from(Publication).where(is_stuck(), *where)) or 0


def _limit(schedule: Schedule, status: Status, at: datetime) -> datetime:
    """What came to the state before is stuck; an upload may take its time."""
    limit: datetime = at - schedule.stuck
    return limit - schedule.upload if status is Status.AWAITING_UPLOAD else limit
