"""Purges, in the database: which are due, which have begun, and how each ends. `purger` deletes the images.

    due ─ begin ─► purge_started_at and a Purge ─ finish ─► purged
      └─ block ─► purge_blocked, and due again    └─ block ─► the same, and it goes on with the next sweep

From `begin` on nothing brings the image back. Who is killed leaves the Purge, which says what is to be
deleted when the manifest that said so is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from platform_server import node_platforms
from platform_server.events import Kind, Told, emit, of_publication
from platform_server.retention import SOURCE, is_booted
from platform_server.states import KEPT, OPEN, Status, Transition, move
from platform_server.tables import NodePlatform, Publication, Purge, is_in
from supply_chain.errors import InvalidReference
from supply_chain.reference import parse_reference
from supply_chain.removal import Parts

_LONGEST_REASON = 1000


@dataclass(frozen=True, slots=True)
class Due:
    """A publication to purge; `parts` when its purge has begun already."""

    row: Publication
    parts: Parts | None


def due(session: Session, platform: NodePlatform, before: datetime) -> Sequence[UUID]:
    """The platform's retired publications whose time has come, the oldest first; no default, none booted."""
    of_platform = (Publication.node_platform_id == platform.id, is_in(Status.RETIRED), ~is_booted())
    late = select(Publication.id).where(*of_platform, Publication.retired_at <= before)
    # an outer join begins with the purges, which are few
    begun = select(Publication.id).select_from(Purge)
    begun = begun.outerjoin(Publication, and_(Publication.id == Purge.id, *of_platform))
    found = {*session.scalars(late), *session.scalars(begun)}
    return sorted(each for each in found if each not in (None, platform.default_publication_id))


def read(session: Session, publication_ids: Collection[UUID]) -> Sequence[Due]:
    """What there is to know of publications that were due, in the order of their ids."""
    rows = session.execute(
        select(Publication, Purge)
        .outerjoin(Purge, Purge.id == Publication.id)
        .where(Publication.id.in_(publication_ids))
        .order_by(Publication.id)
    )
    return [Due(row, _parts(row, purge)) for row, purge in rows if row.status is Status.RETIRED]


def count_purged(session: Session, publication_ids: Collection[UUID]) -> int:
    """How many of these are purged."""
    query = select(func.count(Publication.id)).where(
        Publication.id.in_(publication_ids), Publication.status == Status.PURGED
    )
    return session.scalar(query) or 0


def begin(session: Session, publication_id: UUID, parts: Parts, before: datetime, at: datetime) -> bool:
    """Promise to delete the image; False when that is not to be done, now or ever.

    1. It is still due: whoever made it the default, or booted it, meanwhile wins.
    2. A publication that is not yet verified names the same image: its outcome comes first.
    3. Another platform has the same image in the same repository: this row is purged, the image stays.
    """
    row, platform = node_platforms.hold_of(session, publication_id)
    if not _is_due(session, row, platform, before):  # 1
        return False
    others = _others(session, row)
    if any(other.status in OPEN for other in others):  # 2
        return False
    if any(other.status in KEPT and other.purge_started_at is None for other in others):  # 3
        _finish(session, row, platform, at, image="kept: another platform has it")
        return False
    if row.purge_started_at is None:
        row.purge_started_at = at
        session.add(
            Purge(id=row.id, created_at=at, referrers=list(parts.referrers), blobs=list(parts.blobs))
        )
    return True


def finish(session: Session, publication_id: UUID, at: datetime, *, image: str) -> None:
    """The image is gone, or never was in a registry; done once, however often it is said."""
    row, platform = node_platforms.hold_of(session, publication_id)
    if row.status is Status.RETIRED:
        _finish(session, row, platform, at, image=image)


def block(session: Session, publication_id: UUID, reason: str, at: datetime, *, is_whole: bool) -> None:
    """It could not be deleted; an event tells each reason once. What is still whole may come back."""
    row, platform = node_platforms.hold_of(session, publication_id)
    if row.status is not Status.RETIRED:
        return
    if is_whole:
        row.purge_started_at = None
        _forget(session, row)
    reason = reason[:_LONGEST_REASON]
    if row.purge_blocked != reason:
        row.purge_blocked = reason
        payload = of_publication(row, platform, error_message=reason)
        emit(session, row.account_id, Kind.PURGE_BLOCKED, payload, Told(SOURCE, row.correlation_id), at)


def is_going(session: Session, row: Publication) -> bool:
    """Whether the image of `row` is being deleted as another publication's: it must not be published now."""
    return any(other.purge_started_at is not None for other in _others(session, row) if other.status in KEPT)


def wanted(session: Session, repository: str, without: Collection[str]) -> Sequence[str]:
    """The digests of the images in a repository (`host/path`) that a publication has and is not purged."""
    query = select(Publication.oci_digest).where(
        is_in(*(set(Status) - {Status.PURGED})),
        Publication.oci_digest.is_not(None),
        or_(
            Publication.oci_ref.istartswith(f"{repository}:", autoescape=True),
            Publication.oci_ref.istartswith(f"{repository}@", autoescape=True),
        ),
    )
    return [each for each in session.scalars(query.distinct()) if each is not None and each not in without]


def repository_of(row: Publication) -> str | None:
    """`host/path` of where the image is; None for one that was uploaded, or whose reference is none."""
    try:
        return None if row.oci_ref is None else parse_reference(row.oci_ref).name.lower()
    except InvalidReference:
        return None


def _others(session: Session, row: Publication) -> Sequence[Publication]:
    """Other publications of the same image in the same repository that are verified, or may be yet."""
    if row.oci_digest is None:
        return []
    found = session.scalars(
        select(Publication).where(
            Publication.oci_digest == row.oci_digest,
            Publication.id != row.id,
            or_(
                Publication.status.in_(OPEN),
                Publication.status.in_(KEPT) & Publication.published_at.is_not(None),
            ),
        )
    )
    here = repository_of(row)
    return [other for other in found if repository_of(other) == here]


def _is_due(session: Session, row: Publication, platform: NodePlatform, before: datetime) -> bool:
    if row.status is not Status.RETIRED or row.id == platform.default_publication_id:
        return False
    is_late = row.retired_at is not None and row.retired_at <= before
    if not is_late and row.purge_started_at is None:
        return False
    return session.scalar(select(Publication.id).where(Publication.id == row.id, is_booted())) is None


def _finish(session: Session, row: Publication, platform: NodePlatform, at: datetime, *, image: str) -> None:
    move(row, Transition.PURGE, at)
    row.purge_blocked = None
    _forget(session, row)
    payload = of_publication(row, platform, action="purged", image=image)
    emit(session, row.account_id, Kind.RETENTION_SWEPT, payload, Told(SOURCE, row.correlation_id), at)


def _forget(session: Session, row: Publication) -> None:
    begun = session.get(Purge, row.id)
    if begun is not None:
        session.delete(begun)


def _parts(row: Publication, purge: Purge | None) -> Parts | None:
    if purge is None or row.oci_digest is None:
        return None
    return Parts(row.oci_digest, tuple(purge.referrers), tuple(purge.blobs))
