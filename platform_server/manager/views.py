"""Agents, policies and approval requests as every surface answers them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from platform_server.api import View
from platform_server.tables import AgentStatus, ApprovalRequest, Category, Policy, RequestStatus


class AgentView(View):
    """An agent."""

    id: UUID
    account_id: UUID
    name: str
    status: AgentStatus
    created_at: datetime
    updated_at: datetime


class PolicyView(View):
    """A policy, and the scope that it was set for: `node_platform`, `account`, or `default` if for none."""

    action_category: Category
    policy: Policy
    scope: str
    node_platform_id: UUID | None
    updated_at: datetime | None
    updated_by_id: UUID | None


class ApprovalRequestView(View):
    """What the manager asks, and what was decided: by whom, when and why. Nobody decided one that expired or
    was superseded.
    """

    id: UUID
    account_id: UUID
    agent_id: UUID
    action_category: Category
    status: RequestStatus
    description: str
    node_platform_id: UUID
    publication_id: UUID
    prior_publication_id: UUID | None
    requested_at: datetime
    expires_at: datetime
    decided_at: datetime | None
    decided_by_id: UUID | None
    decided_by: str | None
    reason: str | None


def request_view(row: ApprovalRequest) -> ApprovalRequestView:
    """A request as it is answered."""
    columns = {name: getattr(row, name) for name in ApprovalRequestView.model_fields if hasattr(row, name)}
    return ApprovalRequestView(**columns, requested_at=row.created_at)
