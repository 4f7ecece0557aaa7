"""Publications that are not finished for too long: found, told once, and marked in every list."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from platform_server.events import Kind, Told, emit, of_publication
from platform_server.settings import Schedule
from platform_server.states import OPEN, Status
from platform_server.tables import NodePlatform, Publication

_BATCH = 200

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


def report(session: Session, schedule: Schedule, at: datetime) -> int:
    """Tell of those that are newly stuck, of every account; how many, at most a batch."""
    rows = session.execute(
        select(Publication, NodePlatform)
        .join(NodePlatform, NodePlatform.id == Publication.node_platform_id)
        .where(
            or_(
                _older(Status.QUEUED, Publication.created_at, at - schedule.stuck),
                _older(Status.VERIFYING, Publication.verifying_at, at - schedule.stuck),
                # an upload may take its time
                _older(
                    Status.AWAITING_UPLOAD,
                    Publication.awaiting_upload_at,
                    at - schedule.stuck - schedule.upload,
                ),
            )
        )
        .order_by(Publication.id)
        .limit(_BATCH)
        # Another process that looks at the same time tells of the others.
        .with_for_update(of=Publication, skip_locked=True)
    ).all()
    for row, platform in rows:
        waited: timedelta = at - (since(row) or at)
        row.stuck_reported_at = at
        payload = of_publication(
            row,
            platform,
            status=row.status,
            waited_seconds=int(waited.total_seconds()),
            hint=ADVICE[row.status],
        )
        emit(session, row.account_id, Kind.STUCK, payload, Told("stuck_watch", row.correlation_id), at)
    return len(rows)


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


def _older(status: Status, entered: InstrumentedAttribute[Any], before: datetime) -> ColumnElement[bool]:
    told = Publication.stuck_reported_at
    return (Publication.status == status) & (entered <= before) & (told.is_(None) | (told < entered))
