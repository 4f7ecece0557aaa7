"""A failed publication, verified once more: for when the reason is mended, such as a trust policy that was
missing or a registry that was down.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import node_platforms, publications, queue
from platform_server.errors import Conflict
from platform_server.permissions import Caller
from platform_server.states import OPEN, Status, Transition, move
from platform_server.tables import Job, Publication


def process(session: Session, caller: Caller, publication_id: UUID, at: datetime) -> Publication:
    """The row, verifying again if it had failed; one that is published or still open stays as it is.

    Raises Missing, and Conflict for what can't be verified: retired, purged, a duplicate, an upload that has
    not arrived, or a commit that another row is being verified for.
    """
    asked = publications.get(session, caller, publication_id)
    row, _platform = node_platforms.hold_of(session, asked.id)
    if row.status is Status.PUBLISHED or session.get(Job, row.id) is not None:
        return row
    if row.status is not Status.FAILED or row.duplicate_of_id is not None:
        what = f"a duplicate of {row.duplicate_of_id}" if row.duplicate_of_id is not None else row.status
        raise Conflict(
            f"publication {row.id} is {what}: expected one that failed", "report or upload the image anew"
        )
    if row.git_sha is not None and _is_claimed(session, row):
        raise Conflict(
            f"commit {row.git_sha} is being verified in another publication",
            "wait until that has an outcome",
        )
    move(row, Transition.START_VERIFYING, at)
    queue.enqueue(session, row, at)
    return row


def _is_claimed(session: Session, row: Publication) -> bool:
    found = session.scalars(
        select(Publication.id).where(
            Publication.node_platform_id == row.node_platform_id,
            Publication.arch == row.arch,
            Publication.git_sha == row.git_sha,
            Publication.status.in_(OPEN),
        )
    )
    return found.first() is not None
