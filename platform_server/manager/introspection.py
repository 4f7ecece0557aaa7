"""What the manager is doing: read from what is there and from the events of the last 24 hours."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, literal, select
from sqlalchemy.orm import Session

from platform_server import stuck
from platform_server.api import View
from platform_server.events import Kind
from platform_server.manager import agents, approvals, autonomy
from platform_server.manager.views import AgentView, ApprovalRequestView, PolicyView, request_view
from platform_server.permissions import Caller
from platform_server.tables import Agent, Event, Publication, RequestStatus

_DAY = timedelta(hours=24)
_MOST = 200


class Performance(View):
    """What happened in 24 hours. `total_executions` counts the defaults that the manager set, by policy or
    approved; `promoted_by_policy` the former.
    """

    total_executions: int
    promoted_by_policy: int
    approvals_requested: int
    approvals_approved: int
    approvals_rejected: int
    approvals_expired: int
    approvals_superseded: int


class Observation(View):
    """Something that an operator should look at: a publication that makes no progress."""

    publication_id: UUID
    node_platform_id: UUID
    status: str
    hint: str


class Introspection(View):
    """An agent: what it is, what it may do, what it asks, what it did, and how many stuck publications its
    account has now, the first of which are in `observations`.
    """

    agent: AgentView
    policies: Sequence[PolicyView]
    pending_approvals: Sequence[ApprovalRequestView]
    performance_24h: Performance
    pending_observations: int
    observations: Sequence[Observation]


def introspect(session: Session, caller: Caller, agent_id: UUID | None, at: datetime) -> Introspection:
    """Read all of it in one view of the database. Raises Missing."""
    agent = agents.get(session, caller, agent_id)
    asked = approvals.listing(session, caller, _MOST, status=RequestStatus.PENDING)
    return Introspection(
        agent=AgentView.model_validate(agent),
        policies=[PolicyView.model_validate(each) for each in autonomy.rules(session, agent.account_id)],
        pending_approvals=[request_view(row) for row in asked],
        performance_24h=_performance(session, agent, at - _DAY),
        pending_observations=stuck.count(session, Publication.account_id == agent.account_id),
        observations=_observations(session, agent),
    )


def _performance(session: Session, agent: Agent, since: datetime) -> Performance:
    """Of the manager's own events, by kind: an index has no others."""
    kinds = {
        Kind.DEFAULT_SET: "total_executions",
        Kind.APPROVAL_REQUESTED: "approvals_requested",
        Kind.APPROVAL_APPROVED: "approvals_approved",
        Kind.APPROVAL_REJECTED: "approvals_rejected",
        Kind.APPROVAL_EXPIRED: "approvals_expired",
        Kind.APPROVAL_SUPERSEDED: "approvals_superseded",
    }
    rows = session.execute(
        select(Event.kind, func.count())
        .where(
            Event.account_id == agent.account_id,
            Event.kind.in_(kinds),
            Event.source == literal(agents.SOURCE, literal_execute=True),
            Event.created_at > since,
        )
        .group_by(Event.kind)
    )
    counts = dict.fromkeys(kinds.values(), 0) | {kinds[Kind(kind)]: count for kind, count in rows}
    by_policy = counts["total_executions"] - counts["approvals_approved"]
    return Performance(**counts, promoted_by_policy=by_policy)


def _observations(session: Session, agent: Agent) -> list[Observation]:
    rows = session.scalars(
        select(Publication)
        .where(Publication.account_id == agent.account_id, stuck.is_stuck())
        .order_by(Publication.id)
        .limit(_MOST)
    )
    return [
        Observation(
            publication_id=row.id, node_platform_id=row.node_platform_id, status=row.status, hint=hint
        )
        for row in rows
        if (hint := stuck.advice(row)) is not None
    ]
