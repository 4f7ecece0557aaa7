"""What can become of a publication: its states and transitions as data, and the one function that moves it.

    queued ─► verifying ─► published ⇄ retired ─► purged      mark_failed: the first three ─► failed
      └─► awaiting_upload ─┘                                  failed ─► verifying, or retired

The transitions are the reference's; `reactivate`, and retiring what failed or hangs, those of its later
version. It refuses an illegal one in silence; here that raises.

A row's image is fixed once it was published: `guard_rows` refuses any other change to it before it reaches
the database, and a change of `status` that is not a transition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import event, inspect
from sqlalchemy.orm import Session

from platform_server.errors import Conflict

if TYPE_CHECKING:
    from platform_server.tables import Publication


class Status(StrEnum):
    """The states of a publication."""

    QUEUED = "queued"
    AWAITING_UPLOAD = "awaiting_upload"
    VERIFYING = "verifying"
    PUBLISHED = "published"
    FAILED = "failed"
    RETIRED = "retired"
    PURGED = "purged"


# Its image was verified, and may still be there.
KEPT = frozenset({Status.PUBLISHED, Status.RETIRED})
# Nobody knows yet what it is.
OPEN = frozenset({Status.QUEUED, Status.AWAITING_UPLOAD, Status.VERIFYING})


class Transition(StrEnum):
    """The transitions by the reference's names."""

    AWAIT_UPLOAD = "await_upload"
    START_VERIFYING = "start_verifying"
    MARK_PUBLISHED = "mark_published"
    MARK_FAILED = "mark_failed"
    RETIRE = "retire"
    PURGE = "purge"
    REACTIVATE = "reactivate"


def _always(publication: Publication) -> str | None:
    return None


def _is_verified(publication: Publication) -> str | None:
    if not (publication.cosign_verified and publication.oci_digest and publication.certificate_identity):
        return "its image is not verified"
    return None


def _was_published(publication: Publication) -> str | None:
    if publication.published_at is None:
        return "it was never published"
    if publication.purge_started_at is not None:
        return "its image is being deleted"
    return None


@dataclass(frozen=True, slots=True)
class Rule:
    """From which states a transition leads where, if `guard` names no reason against it; `stamps` are the
    columns that get the time.
    """

    sources: frozenset[Status]
    target: Status
    stamps: tuple[str, ...]
    guard: Callable[[Publication], str | None] = _always


RULES: Mapping[Transition, Rule] = {
    Transition.AWAIT_UPLOAD: Rule(
        frozenset({Status.QUEUED}), Status.AWAITING_UPLOAD, ("awaiting_upload_at",)
    ),
    Transition.START_VERIFYING: Rule(OPEN | {Status.FAILED}, Status.VERIFYING, ("verifying_at",)),
    Transition.MARK_PUBLISHED: Rule(
        frozenset({Status.VERIFYING}), Status.PUBLISHED, ("verified_at", "published_at"), _is_verified
    ),
    Transition.MARK_FAILED: Rule(OPEN, Status.FAILED, ("failed_at",)),
    Transition.RETIRE: Rule(
        frozenset({Status.PUBLISHED, Status.FAILED, Status.VERIFYING}), Status.RETIRED, ("retired_at",)
    ),
    Transition.PURGE: Rule(frozenset({Status.RETIRED}), Status.PURGED, ("purged_at",)),
    Transition.REACTIVATE: Rule(
        frozenset({Status.RETIRED}), Status.PUBLISHED, ("reactivated_at",), _was_published
    ),
}

# What may still change on a row whose image was published.
_LASTING = frozenset(
    {"status", "retired_at", "reactivated_at", "purge_started_at", "purge_blocked", "purged_at"}
)


def refusal(publication: Publication, transition: Transition) -> str | None:
    """Why the transition is not possible now; None when it is."""
    rule = RULES[transition]
    if publication.status not in rule.sources:
        allowed = ", ".join(sorted(rule.sources))
        return f"only a publication that is {allowed} can {transition}, and it is {publication.status}"
    return rule.guard(publication)


def move(publication: Publication, transition: Transition, at: datetime) -> None:
    """Carry out a transition. The caller holds the platform's row (see `database`).

    Raises Conflict, and changes nothing, when the state or the guard forbids it.
    """
    if (reason := refusal(publication, transition)) is not None:
        raise Conflict(f"publication {publication.id}: {reason}", "look at its status and its error_message")
    rule = RULES[transition]
    if publication.status in OPEN:
        # Whatever it was stuck in, it goes on.
        publication.stuck_reported_at = None
    publication.status = rule.target
    for column in rule.stamps:
        setattr(publication, column, at)


@event.listens_for(Session, "before_flush")
def guard_rows(session: Session, context: object, instances: object) -> None:
    """Refuse to write what no transition allows. Raises AssertionError: it is a mistake in this program."""
    from platform_server.tables import Publication

    for row in session.dirty:
        if isinstance(row, Publication) and session.is_modified(row):
            _guard(row)


def _guard(row: Publication) -> None:
    state = inspect(row)
    changed = {attribute.key for attribute in state.attrs if attribute.history.has_changes()}
    history = state.attrs.status.history
    before: Status = history.deleted[0] if history.deleted else row.status
    if before != row.status and not any(
        before in rule.sources and rule.target == row.status for rule in RULES.values()
    ):
        raise AssertionError(f"publication {row.id}: no transition leads from {before} to {row.status}")
    if before in KEPT | {Status.PURGED} and row.published_at is not None and (wrong := changed - _LASTING):
        raise AssertionError(f"publication {row.id} is {before}: {', '.join(sorted(wrong))} can't change")
