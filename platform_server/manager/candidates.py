"""What the manager may promote: of each node platform the newest image that was published since somebody
last chose the default. Choosing another default is a decision about it, so that nobody is undone.

Whoever calls these holds the node platform.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.orm import Session

from platform_server.states import Status
from platform_server.tables import Candidate, NodePlatform, Publication


def offer(session: Session, platform: NodePlatform, row: Publication, at: datetime) -> None:
    """A new image was published; it takes the place of an older candidate."""
    found = session.get(Candidate, platform.id, populate_existing=True)
    if found is None:
        session.add(Candidate(id=platform.id, publication_id=row.id, created_at=at))
    else:
        found.publication_id, found.created_at = row.id, at


def clear(session: Session, platform: NodePlatform) -> None:
    """The default was chosen."""
    session.execute(delete(Candidate).where(Candidate.id == platform.id))


def get(session: Session, platform: NodePlatform) -> Publication | None:
    """The candidate, if it is still published and not the default."""
    found = session.get(Candidate, platform.id, populate_existing=True)
    if found is None or found.publication_id == platform.default_publication_id:
        return None
    row = session.get_one(Publication, found.publication_id, populate_existing=True)
    return row if row.status is Status.PUBLISHED else None
