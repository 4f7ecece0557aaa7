"""Approval requests: the manager asks, a person decides, or time and the world do.

    pending ─► approved     and the manager's action was done, in the same transaction
       │─────► rejected     by a person, or because it expired; the same is not asked again for a while
       └─────► superseded   a newer image was published, the default was chosen, or the policy changed

A decision is a fact: who, when and why never change (`guard_decisions`). Every function here works with the
node platform held, so that of two who decide at the same time the second finds the decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import Session

from platform_server import defaults, node_platforms
from platform_server.errors import Conflict, Invalid, missing
from platform_server.events import Kind, Told, emit, of_publication
from platform_server.manager import agents, candidates
from platform_server.paging import Column, newest_first
from platform_server.permissions import Caller
from platform_server.tables import (
    Agent,
    AgentStatus,
    ApprovalRequest,
    Category,
    NodePlatform,
    Publication,
    RequestStatus,
)

_EXPIRED = "expired: nobody decided in time"
_KINDS = {
    RequestStatus.APPROVED: Kind.APPROVAL_APPROVED,
    RequestStatus.REJECTED: Kind.APPROVAL_REJECTED,
    RequestStatus.SUPERSEDED: Kind.APPROVAL_SUPERSEDED,
}


def get(session: Session, caller: Caller, request_id: UUID) -> ApprovalRequest:
    """One of the account's requests. Raises Missing."""
    row = session.scalars(
        select(ApprovalRequest).where(
            ApprovalRequest.id == request_id, ApprovalRequest.account_id == caller.account_id
        )
    ).one_or_none()
    if row is None:
        raise missing("approval request", request_id)
    return row


def listing(
    session: Session,
    caller: Caller,
    limit: int,
    *,
    status: RequestStatus | None = None,
    before: UUID | None = None,
) -> Sequence[ApprovalRequest]:
    """The account's requests, the newest first."""
    have: dict[Column, Any] = {ApprovalRequest.account_id: caller.account_id}
    if status is not None:
        have[ApprovalRequest.status] = status
    query = newest_first(select(ApprovalRequest), have, ApprovalRequest.id, before, limit)
    return session.scalars(query).all()


def pending(session: Session, platform: NodePlatform) -> ApprovalRequest | None:
    """What is asked about a platform's default now."""
    return session.scalars(
        select(ApprovalRequest).where(
            ApprovalRequest.node_platform_id == platform.id,
            ApprovalRequest.action_category == Category.PROMOTE,
            ApprovalRequest.status == RequestStatus.PENDING,
        )
    ).one_or_none()


def ask(
    session: Session,
    agent: Agent,
    platform: NodePlatform,
    row: Publication,
    at: datetime,
    *,
    lasts: timedelta,
    suppressed: timedelta,
) -> ApprovalRequest | None:
    """Ask whether new nodes should boot a publication; None if that was rejected within `suppressed`."""
    key = f"{Category.PROMOTE}:{row.id}"
    rejected = select(ApprovalRequest.id).where(
        ApprovalRequest.natural_key == key,
        ApprovalRequest.status == RequestStatus.REJECTED,
        ApprovalRequest.decided_at > at - suppressed,
    )
    if session.scalars(rejected.limit(1)).first() is not None:
        return None
    request = ApprovalRequest(
        account_id=platform.account_id,
        agent_id=agent.id,
        action_category=Category.PROMOTE,
        natural_key=key,
        node_platform_id=platform.id,
        publication_id=row.id,
        prior_publication_id=platform.default_publication_id,
        description=f"have new nodes of {platform.name} boot {row.oci_digest}",
        expires_at=at + lasts,
        created_at=at,
    )
    session.add(request)
    session.flush()
    _tell(session, Kind.APPROVAL_REQUESTED, request, platform, row, at)
    return request


def approve(
    session: Session, caller: Caller, request_id: UUID, reason: str | None, at: datetime
) -> tuple[ApprovalRequest, defaults.Changed]:
    """Decide for a request and do what it asks for: both or neither.

    1. It waits: nobody decided it, and it has not expired.
    2. The manager is not paused.
    3. The publication is still the newest one since the default was chosen.
    4. It is made the default by what set_default does, which refuses what is not published or is blocked.

    Raises Missing, and Conflict for whatever does not hold; then nothing is changed, and the manager's next
    tick closes a request that nothing is left of.
    """
    request, platform = _waiting(session, caller, request_id, at)  # 1
    if agents.manager(session, platform.account_id, at).status is AgentStatus.PAUSED:  # 2
        raise Conflict(f"the {agents.NAME} is paused", "resume it, or set the default yourself")
    candidate = candidates.get(session, platform)
    if candidate is None or candidate.id != request.publication_id:  # 3
        raise _moved_on(request, "a newer one was published, the default was chosen, or it was retired")
    try:
        changed = defaults.set_default(
            session, caller, request.publication_id, platform.id, at, source=agents.SOURCE
        )  # 4
    except Invalid as error:
        raise _moved_on(request, error.rule) from None
    _decide(session, request, platform, RequestStatus.APPROVED, at, caller=caller, reason=reason)
    return request, changed


def reject(
    session: Session, caller: Caller, request_id: UUID, reason: str | None, at: datetime
) -> ApprovalRequest:
    """Decide against a request, also while the manager is paused. Raises Missing, Conflict."""
    request, platform = _waiting(session, caller, request_id, at)
    _decide(session, request, platform, RequestStatus.REJECTED, at, caller=caller, reason=reason)
    return request


def supersede(
    session: Session, request: ApprovalRequest, platform: NodePlatform, why: str, at: datetime
) -> None:
    """Close a request of which nothing is left to decide."""
    _decide(session, request, platform, RequestStatus.SUPERSEDED, at, reason=why)


def overdue(session: Session, at: datetime) -> Sequence[UUID]:
    """Requests of every account that wait for too long."""
    return session.scalars(
        select(ApprovalRequest.id).where(
            ApprovalRequest.status == RequestStatus.PENDING, ApprovalRequest.expires_at <= at
        )
    ).all()


def expire(session: Session, request_id: UUID, at: datetime) -> bool:
    """Reject a request because its time is over; False when somebody decided meanwhile."""
    request = session.get_one(ApprovalRequest, request_id)
    platform = _hold(session, request)
    if request.status is not RequestStatus.PENDING or request.expires_at > at:
        return False
    _decide(
        session, request, platform, RequestStatus.REJECTED, at, reason=_EXPIRED, kind=Kind.APPROVAL_EXPIRED
    )
    return True


def _waiting(
    session: Session, caller: Caller, request_id: UUID, at: datetime
) -> tuple[ApprovalRequest, NodePlatform]:
    request = get(session, caller, request_id)
    platform = _hold(session, request)
    if request.status is not RequestStatus.PENDING:
        by = f" by {request.decided_by}" if request.decided_by else ""
        raise Conflict(
            f"approval request {request.id} is {request.status}{by} since {request.decided_at}",
            "list those with status=pending",
        )
    if request.expires_at <= at:
        raise Conflict(
            f"approval request {request.id} expired at {request.expires_at}",
            "the manager asks again; or set the default yourself",
        )
    return request, platform


def _hold(session: Session, request: ApprovalRequest) -> NodePlatform:
    platform = node_platforms.hold(session, request.node_platform_id)
    session.refresh(request, with_for_update=True)
    return platform


def _decide(
    session: Session,
    request: ApprovalRequest,
    platform: NodePlatform,
    status: RequestStatus,
    at: datetime,
    *,
    caller: Caller | None = None,
    reason: str | None = None,
    kind: Kind | None = None,
) -> None:
    request.status, request.decided_at, request.reason = status, at, reason
    if caller is not None:
        request.decided_by_id, request.decided_by = caller.user_id, caller.name
    # The index allows one that is pending: this one is none any more before the next one is written.
    session.flush()
    row = session.get_one(Publication, request.publication_id)
    _tell(session, kind or _KINDS[status], request, platform, row, at)


def _tell(
    session: Session,
    kind: Kind,
    request: ApprovalRequest,
    platform: NodePlatform,
    row: Publication,
    at: datetime,
) -> None:
    payload: dict[str, Any] = of_publication(
        row,
        platform,
        approval_request_id=str(request.id),
        action_category=request.action_category,
        expires_at=request.expires_at.isoformat(),
        decided_by=request.decided_by,
        by_user_id=None if request.decided_by_id is None else str(request.decided_by_id),
        reason=request.reason,
    )
    emit(session, request.account_id, kind, payload, Told(agents.SOURCE, row.correlation_id), at)


def _moved_on(request: ApprovalRequest, why: str) -> Conflict:
    return Conflict(
        f"approval request {request.id}: publication {request.publication_id} can't become the default "
        f"any more: {why}",
        "the manager closes this request and asks about what is there now",
    )


@event.listens_for(Session, "before_flush")
def guard_decisions(session: Session, context: object, instances: object) -> None:
    """Refuse to change what was asked or decided. Raises AssertionError: it is a mistake in this program."""
    for row in session.dirty:
        if not isinstance(row, ApprovalRequest) or not session.is_modified(row):
            continue
        state = inspect(row)
        changed = {each.key for each in state.attrs if each.history.has_changes()}
        before = (state.attrs.status.history.deleted or [row.status])[0]
        allowed = {"status", "decided_at", "decided_by_id", "decided_by", "reason"}
        if before is not RequestStatus.PENDING or changed - allowed:
            raise AssertionError(f"approval request {row.id} is {before}: {sorted(changed)} can't change")
