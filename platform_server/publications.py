"""Publications, read: one, a page of them, and which one is the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from platform_server.errors import missing
from platform_server.paging import Column, newest_first
from platform_server.permissions import Caller
from platform_server.states import Status
from platform_server.tables import NodePlatform, Publication
from supply_chain.reference import parse_reference


def get(
    session: Session, caller: Caller, publication_id: UUID, platform_id: UUID | None = None
) -> Publication:
    """One of the account's publications, of that platform if one is named. Raises Missing."""
    query = select(Publication).where(
        Publication.id == publication_id, Publication.account_id == caller.account_id
    )
    if platform_id is not None:
        query = query.where(Publication.node_platform_id == platform_id)
    row = session.scalars(query).one_or_none()
    if row is None:
        raise missing("publication", publication_id)
    return row


def listing(
    session: Session,
    caller: Caller,
    limit: int,
    *,
    platform_id: UUID | None = None,
    status: Status | None = None,
    before: UUID | None = None,
) -> Sequence[Publication]:
    """The account's publications, the newest first."""
    have: dict[Column, Any] = {Publication.account_id: caller.account_id}
    if platform_id is not None:
        owner = select(NodePlatform.id).where(
            NodePlatform.id == platform_id, NodePlatform.account_id == caller.account_id
        )
        if session.scalar(owner) is None:
            return []
        have = {Publication.node_platform_id: platform_id}
    if status is not None:
        have[Publication.status] = status
    return session.scalars(newest_first(select(Publication), have, Publication.id, before, limit)).all()


def defaults(session: Session, rows: Sequence[Publication]) -> frozenset[UUID]:
    """Those of the rows that their platforms give to new nodes."""
    if not rows:
        return frozenset()
    platforms = {row.node_platform_id for row in rows}
    found = session.scalars(
        select(NodePlatform.default_publication_id).where(
            NodePlatform.id.in_(platforms), NodePlatform.default_publication_id.is_not(None)
        )
    )
    return frozenset(each for each in found if each is not None)


@dataclass(frozen=True, slots=True)
class Newest:
    """What a platform shows: the state of its newest publication, and its newest good image."""

    disk_image_publication_status: str = "none"
    disk_image_publication_error: str | None = None
    disk_image_oci_ref: str | None = None


def newest(session: Session, platform_id: UUID) -> Newest:
    """The newest publication that is no duplicate, and the last one that was published, pinned."""

    def first(query: Select[Any], have: Mapping[Column, Any]) -> Publication | None:
        return session.scalars(newest_first(query, have, Publication.id, None, 1)).first()

    rows, have = select(Publication), {Publication.node_platform_id: platform_id}
    last = first(rows.where(Publication.duplicate_of_id.is_(None)), have)
    good = first(rows, {**have, Publication.status: Status.PUBLISHED})
    return Newest(
        "none" if last is None else last.status,
        last.error_message if last is not None and last.status is Status.FAILED else None,
        None if good is None else pinned(good),
    )


def pinned(row: Publication) -> str | None:
    """Where the image is, by its digest; None for one that was uploaded."""
    if row.oci_ref is None or row.oci_digest is None:
        return row.oci_ref
    return str(parse_reference(row.oci_ref).at(row.oci_digest))
