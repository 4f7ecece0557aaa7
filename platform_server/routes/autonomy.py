"""`autonomy`, `agents` and `approval_requests`: the Disk Image Manager, over the actions' implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from platform_server.api import Body, Meta, Served, Success, View, Window, errors, page, requires
from platform_server.ci_actions import Nothing
from platform_server.manager import actions, approvals
from platform_server.manager.actions import (
    AgentData,
    Agents,
    Approved,
    Autonomy,
    Changed,
    Decision,
    ListAgents,
    Rejected,
    UpdateAutonomy,
    WhichAgent,
)
from platform_server.manager.introspection import Introspection
from platform_server.manager.views import ApprovalRequestView, request_view
from platform_server.permissions import Caller, Permission
from platform_server.tables import RequestStatus

router = APIRouter(tags=["autonomy"])

_Read = Annotated[Caller, Depends(requires(Permission.NODES_READ))]
_Policy = Annotated[Caller, Depends(requires(Permission.MANAGE_DISK_IMAGE_POLICY))]
_Control = Annotated[Caller, Depends(requires(Permission.INFRA_TASKS_CONTROL))]


@router.get("/autonomy", responses=errors(401, 403))
async def show(caller: _Read, platform: Served) -> Success[Autonomy]:
    """Agents, how approval requests are decided, and every policy."""
    return Success(data=await actions.get_autonomy(platform, caller, Nothing()))


@router.patch("/autonomy", responses=errors(401, 403))
async def update(caller: _Policy, platform: Served, body: UpdateAutonomy) -> Success[Changed]:
    """Set policies: all of them, or none, and then the error names each that is wrong by its index."""
    return Success(data=await actions.update_autonomy(platform, caller, body))


@router.get("/agents", responses=errors(401, 403))
async def agents(
    caller: _Read, platform: Served, name_contains: Annotated[str, Query(max_length=200)] = ""
) -> Success[Agents]:
    """The account's agents."""
    params = ListAgents(name_contains=name_contains)
    return Success(data=await actions.list_agents(platform, caller, params))


@router.get("/agents/{agent_id}", responses=errors(401, 403, 404))
async def introspect(caller: _Read, platform: Served, agent_id: UUID) -> Success[Introspection]:
    """One agent, as `agent_introspect` answers it."""
    return Success(data=await actions.agent_introspect(platform, caller, WhichAgent(agent_id=agent_id)))


@router.post("/agents/{agent_id}/pause", responses=errors(401, 403, 404))
async def pause(caller: _Control, platform: Served, agent_id: UUID) -> Success[AgentData]:
    """Have an agent do nothing on its own."""
    return Success(data=await actions.pause_agent(platform, caller, WhichAgent(agent_id=agent_id)))


@router.post("/agents/{agent_id}/resume", responses=errors(401, 403, 404))
async def resume(caller: _Control, platform: Served, agent_id: UUID) -> Success[AgentData]:
    """Have a paused agent go on."""
    return Success(data=await actions.resume_agent(platform, caller, WhichAgent(agent_id=agent_id)))


class RequestsWindow(Window):
    """Which part of the list, and by choice only one state."""

    status: RequestStatus | None = None


class RequestsData(View):
    """A page of approval requests."""

    approval_requests: Sequence[ApprovalRequestView]
    meta: Meta


class RequestData(View):
    """One approval request."""

    approval_request: ApprovalRequestView


class Reason(Body):
    """Why, in the decider's words."""

    reason: Annotated[str, Field(min_length=1, max_length=1000)] | None = None


@router.get("/approval_requests", responses=errors(401, 403))
async def index(
    caller: _Read, platform: Served, window: Annotated[RequestsWindow, Query()]
) -> Success[RequestsData]:
    """What the manager asks and asked, the newest first."""
    found = await platform.database.read(
        lambda on: approvals.listing(
            on, caller, window.limit + 1, status=window.status, before=window.before
        )
    )
    rows, meta = page(found, window)
    return Success(data=RequestsData(approval_requests=[request_view(row) for row in rows], meta=meta))


@router.get("/approval_requests/{request_id}", responses=errors(401, 403, 404))
async def one(caller: _Read, platform: Served, request_id: UUID) -> Success[RequestData]:
    """One approval request."""
    row = await platform.database.read(lambda on: approvals.get(on, caller, request_id))
    return Success(data=RequestData(approval_request=request_view(row)))


@router.post("/approval_requests/{request_id}/approve", responses=errors(401, 403, 404, 409))
async def approve(
    caller: _Control, platform: Served, request_id: UUID, body: Reason | None = None
) -> Success[Approved]:
    """Approve a request, and do what it asks for."""
    return Success(data=await actions.approve_request(platform, caller, _decision(request_id, body)))


@router.post("/approval_requests/{request_id}/reject", responses=errors(401, 403, 404, 409))
async def reject(
    caller: _Control, platform: Served, request_id: UUID, body: Reason | None = None
) -> Success[Rejected]:
    """Reject a request; the same is not asked again for a while."""
    return Success(data=await actions.reject_request(platform, caller, _decision(request_id, body)))


def _decision(request_id: UUID, body: Reason | None) -> Decision:
    return Decision(approval_request_id=request_id, reason=None if body is None else body.reason)
