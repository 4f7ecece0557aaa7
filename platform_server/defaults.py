"""What new nodes boot: a platform's default publication, set and rolled back. Nodes that run keep theirs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import literal, select, tuple_
from sqlalchemy.orm import Session

from platform_server import node_platforms, publications
from platform_server.errors import Conflict, Invalid
from platform_server.events import Kind, Told, emit, of_publication
from platform_server.manager import candidates, policies
from platform_server.permissions import Caller
from platform_server.states import KEPT, Status, Transition, move, refusal
from platform_server.tables import Category, NodePlatform, Publication, is_in

_SOURCE = "operator_ui"


@dataclass(frozen=True, slots=True)
class Changed:
    """The default, and which publication was it before; None when nothing changed, or there was none."""

    row: Publication
    prior_id: UUID | None


def set_default(
    session: Session,
    caller: Caller,
    publication_id: UUID,
    platform_id: UUID | None,
    at: datetime,
    source: str = _SOURCE,
) -> Changed:
    """Have new nodes boot a published image. Raises Missing, Invalid when it is not published, and Conflict
    when a policy blocks it.
    """
    asked = publications.get(session, caller, publication_id, platform_id)
    found, platform = node_platforms.hold_of(session, asked.id)
    policies.require_unblocked(session, Category.PROMOTE, platform.account_id, platform.id)
    if found.status is not Status.PUBLISHED:
        raise Invalid(
            field="publication_id",
            value=str(publication_id),
            rule=f"only 'published' can be the default, and it is {found.status}",
            hint="a retired one comes back by rollback; list those with status=published",
        )
    prior = platform.default_publication_id
    if prior == found.id:
        return Changed(found, None)
    _point(session, platform, found, at)
    payload = of_publication(
        found, platform, prior_publication_id=_text(prior), by_user_id=_text(caller.user_id)
    )
    emit(session, platform.account_id, Kind.DEFAULT_SET, payload, Told(source, found.correlation_id), at)
    return Changed(found, prior)


def rollback(
    session: Session, caller: Caller, platform_id: UUID, publication_id: UUID | None, at: datetime
) -> Changed:
    """Have new nodes boot another good image, and retire the one they boot now.

    1. The target is the publication named, or the one that was published before the default.
    2. It was verified and published once, and its image is still there: published, or retired with no purge
       begun. Anything else is Invalid.
    3. A retired one is published again, so that no sweep takes it for one to purge.
    4. The default before is retired: it is kept for the nodes that boot it, and for the way back.

    Raises Missing, Invalid, and Conflict when there is nothing to go back to or a policy blocks it. To name
    the default changes nothing.
    """
    platform = node_platforms.locked(session, caller, platform_id)
    policies.require_unblocked(session, Category.ROLLBACK, platform.account_id, platform.id)
    prior = _default(session, platform)
    prior_id = platform.default_publication_id
    target = (
        _named(session, caller, platform, publication_id) if publication_id else _before(session, prior)
    )  # 1
    if target.id == platform.default_publication_id:
        return Changed(target, None)
    if target.published_at is None or target.status not in KEPT:  # 2
        raise _not_a_target(target, f"it is {target.status}{_never(target)}")
    if target.status is Status.RETIRED:  # 3
        if (reason := refusal(target, Transition.REACTIVATE)) is not None:
            raise _not_a_target(target, reason)
        move(target, Transition.REACTIVATE, at)
        target.purge_blocked = None
    _point(session, platform, target, at)
    if prior is not None and prior.status is Status.PUBLISHED:  # 4
        move(prior, Transition.RETIRE, at)
    payload = of_publication(
        target,
        platform,
        activated_publication_id=str(target.id),
        activated_git_sha=target.git_sha,
        prior_publication_id=_text(prior_id),
        by_user_id=_text(caller.user_id),
    )
    emit(session, platform.account_id, Kind.ROLLED_BACK, payload, Told(_SOURCE, target.correlation_id), at)
    return Changed(target, prior_id)


def _point(session: Session, platform: NodePlatform, row: Publication, at: datetime) -> None:
    platform.default_publication_id = row.id
    platform.updated_at = at
    candidates.clear(session, platform)


def _default(session: Session, platform: NodePlatform) -> Publication | None:
    if platform.default_publication_id is None:
        return None
    return session.get_one(
        Publication, platform.default_publication_id, with_for_update=True, populate_existing=True
    )


def _named(session: Session, caller: Caller, platform: NodePlatform, publication_id: UUID) -> Publication:
    row = publications.get(session, caller, publication_id, platform.id)
    session.refresh(row, with_for_update=True)
    return row


def _before(session: Session, default: Publication | None) -> Publication:
    """The target when none is named: by the times of first publication, so that each rollback goes further
    back.
    """
    if default is None:
        raise Conflict("the platform has no default to roll back from", "name the publication_id to boot")
    published = default.published_at
    row = session.scalars(
        select(Publication)
        .where(
            Publication.node_platform_id == default.node_platform_id,
            is_in(*KEPT),
            Publication.published_at.is_not(None),
            Publication.purge_started_at.is_(None),
            Publication.published_at <= published,
            tuple_(Publication.published_at, Publication.id)
            < tuple_(
                literal(published, Publication.published_at.type), literal(default.id, Publication.id.type)
            ),
        )
        .order_by(Publication.published_at.desc(), Publication.id.desc())
        .limit(1)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise Conflict(
            "no image that is still there was published before the default",
            "name the publication_id to boot",
        )
    return row


def _not_a_target(row: Publication, reason: str) -> Invalid:
    return Invalid(
        field="publication_id",
        value=str(row.id),
        rule=f"one that was published, and is not purged ({reason})",
        hint="list those with status=published or status=retired",
    )


def _never(row: Publication) -> str:
    return "" if row.published_at is not None else ", and was never published"


def _text(identifier: UUID | None) -> str | None:
    return None if identifier is None else str(identifier)
