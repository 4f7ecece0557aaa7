"""The operators' actions about the Disk Image Manager, as data: agents, policies, approvals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from platform_server.actions import Action, DefaultSet, Effect
from platform_server.actions import default_set as default_view
from platform_server.api import Body, View
from platform_server.ci_actions import Nothing
from platform_server.manager import agents, approvals, autonomy
from platform_server.manager.introspection import Introspection, introspect
from platform_server.manager.views import AgentView, ApprovalRequestView, PolicyView, request_view
from platform_server.permissions import Caller, Permission
from platform_server.state_folder import Platform
from platform_server.tables import AgentStatus, Category, Policy, RequestStatus

_Id = Annotated[UUID, Field(strict=False)]
_DOMAIN = "disk_image"


class ListAgents(Body):
    """Which agents: those whose name has these letters."""

    name_contains: Annotated[
        str, Field(max_length=200, description="letters of the name, of whatever case")
    ] = ""


class Agents(View):
    """The account's agents."""

    agents: Sequence[AgentView]
    count: int


async def list_agents(platform: Platform, caller: Caller, params: ListAgents) -> Agents:
    rows = await platform.database.read(lambda on: agents.listing(on, caller, params.name_contains))
    views = [AgentView.model_validate(row) for row in rows]
    return Agents(agents=views, count=len(views))


class WhichAgent(Body):
    """Which agent; the Disk Image Manager unless another is named."""

    agent_id: Annotated[_Id | None, Field(description="an agent of the account")] = None


async def agent_introspect(platform: Platform, caller: Caller, params: WhichAgent) -> Introspection:
    at = platform.clock()
    return await platform.database.read(lambda on: introspect(on, caller, params.agent_id, at))


class AgentData(View):
    """One agent."""

    agent: AgentView


async def pause_agent(platform: Platform, caller: Caller, params: WhichAgent) -> AgentData:
    return await _set_status(platform, caller, params, AgentStatus.PAUSED)


async def resume_agent(platform: Platform, caller: Caller, params: WhichAgent) -> AgentData:
    return await _set_status(platform, caller, params, AgentStatus.ACTIVE)


class Chain(View):
    """How requests are decided. A request that nobody decides in `timeout_seconds` is rejected, and what was
    rejected is not asked again for `suppression_seconds`.
    """

    name: str
    step_count: int
    is_sequential: bool
    approver_permission: Permission
    timeout_seconds: int
    on_timeout: Literal["reject"] = "reject"
    suppression_seconds: int


class Policies(View):
    """Every policy, by what it is about, by whose it is, and by domain: three views of one list."""

    by_action: Mapping[str, Sequence[PolicyView]]
    by_agent: Mapping[str, Sequence[PolicyView]]
    by_domain: Mapping[str, Sequence[PolicyView]]


class Autonomy(View):
    """Agents, how approval requests are decided, and policies."""

    agents: Sequence[AgentView]
    chains: Sequence[Chain]
    policies: Policies


async def get_autonomy(platform: Platform, caller: Caller, params: Nothing) -> Autonomy:
    found, rules = await platform.database.read(
        lambda on: (agents.listing(on, caller), autonomy.rules(on, caller.account_id))
    )
    views = [PolicyView.model_validate(rule) for rule in rules]
    schedule = platform.settings.schedule
    chain = Chain(
        name=f"{agents.NAME} Actions",
        step_count=1,
        is_sequential=True,
        approver_permission=Permission.INFRA_TASKS_CONTROL,
        timeout_seconds=int(schedule.approval.total_seconds()),
        suppression_seconds=int(schedule.rejection.total_seconds()),
    )
    by_action = {
        category: [each for each in views if each.action_category == category]
        for category in dict.fromkeys(each.action_category for each in views)
    }
    return Autonomy(
        agents=[AgentView.model_validate(row) for row in found],
        chains=[chain],
        policies=Policies(by_action=by_action, by_agent={agents.NAME: views}, by_domain={_DOMAIN: views}),
    )


class PolicyUpdate(Body):
    """A policy for the account, or for one node platform; null is that of the next wider scope."""

    action_category: Annotated[str, Field(description="what it is about")]
    policy: Annotated[str | None, Field(description="one of the five, or null")]
    node_platform_id: Annotated[_Id | None, Field(description="for this node platform alone")] = None
    agent_id: Annotated[_Id | None, Field(description="the Disk Image Manager")] = None


class UpdateAutonomy(Body):
    """Which policies; all of them are set, or none."""

    updates: Annotated[
        list[PolicyUpdate],
        Field(
            max_length=200,
            description="each with action_category and policy, by choice node_platform_id",
            examples=[[{"action_category": Category.PROMOTE, "policy": Policy.AUTO_APPROVE}]],
        ),
    ]


class Changed(View):
    """How many policies are others now."""

    changed: int


async def update_autonomy(platform: Platform, caller: Caller, params: UpdateAutonomy) -> Changed:
    updates = [autonomy.Update(**each.model_dump()) for each in params.updates]
    changed = await platform.database.write(
        lambda on: autonomy.update(on, caller, updates, platform.clock())
    )
    return Changed(changed=changed)


class ListRequests(Body):
    """Which approval requests."""

    status: Annotated[
        Annotated[RequestStatus, Field(strict=False)] | None, Field(description="only those in this state")
    ] = None
    limit: Annotated[int, Field(ge=1, le=200, description="how many at most")] = 50


class ApprovalRequests(View):
    """Approval requests, the newest first."""

    approval_requests: Sequence[ApprovalRequestView]
    count: int


async def list_approval_requests(
    platform: Platform, caller: Caller, params: ListRequests
) -> ApprovalRequests:
    rows = await platform.database.read(
        lambda on: approvals.listing(on, caller, params.limit, status=params.status)
    )
    views = [request_view(row) for row in rows]
    return ApprovalRequests(approval_requests=views, count=len(views))


class Decision(Body):
    """Which approval request, and by choice why."""

    approval_request_id: Annotated[_Id, Field(description="a request that is pending")]
    reason: Annotated[
        Annotated[str, Field(min_length=1, max_length=1000)] | None, Field(description="why, for the record")
    ] = None


class Approved(View):
    """An approved request, and what new nodes boot from now on."""

    approved: Literal[True] = True
    approval_request: ApprovalRequestView
    result: DefaultSet


async def approve_request(platform: Platform, caller: Caller, params: Decision) -> Approved:
    row, changed = await platform.database.write(
        lambda on: approvals.approve(on, caller, params.approval_request_id, params.reason, platform.clock())
    )
    return Approved(approval_request=request_view(row), result=default_view(changed))


class Rejected(View):
    """A rejected request."""

    rejected: Literal[True] = True
    approval_request: ApprovalRequestView


async def reject_request(platform: Platform, caller: Caller, params: Decision) -> Rejected:
    row = await platform.database.write(
        lambda on: approvals.reject(on, caller, params.approval_request_id, params.reason, platform.clock())
    )
    return Rejected(approval_request=request_view(row))


ACTIONS: Sequence[Action] = (
    Action(
        "list_agents",
        "The account's agents, by choice those whose name contains something.",
        Permission.NODES_READ,
        Effect.READS,
        ListAgents,
        Agents,
        list_agents,
    ),
    Action(
        "agent_introspect",
        "An agent: its policies, what it asks, what it did in 24 hours, and what is stuck.",
        Permission.NODES_READ,
        Effect.READS,
        WhichAgent,
        Introspection,
        agent_introspect,
    ),
    Action(
        "pause_agent",
        "Have an agent do nothing on its own; webhooks go on.",
        Permission.INFRA_TASKS_CONTROL,
        Effect.SETS,
        WhichAgent,
        AgentData,
        pause_agent,
    ),
    Action(
        "resume_agent",
        "Have a paused agent go on.",
        Permission.INFRA_TASKS_CONTROL,
        Effect.SETS,
        WhichAgent,
        AgentData,
        resume_agent,
    ),
    Action(
        "get_autonomy",
        "Agents, how approval requests are decided, and every policy.",
        Permission.NODES_READ,
        Effect.READS,
        Nothing,
        Autonomy,
        get_autonomy,
    ),
    Action(
        "update_autonomy",
        "Set policies of the account or of a node platform: all of them, or none.",
        Permission.MANAGE_DISK_IMAGE_POLICY,
        Effect.SETS,
        UpdateAutonomy,
        Changed,
        update_autonomy,
    ),
    Action(
        "list_approval_requests",
        "What the manager asks and asked, the newest first.",
        Permission.NODES_READ,
        Effect.READS,
        ListRequests,
        ApprovalRequests,
        list_approval_requests,
    ),
    Action(
        "approve_request",
        "Approve a request, and do what it asks for.",
        Permission.INFRA_TASKS_CONTROL,
        Effect.SETS,
        Decision,
        Approved,
        approve_request,
    ),
    Action(
        "reject_request",
        "Reject a request; the same is not asked again for a while.",
        Permission.INFRA_TASKS_CONTROL,
        Effect.SETS,
        Decision,
        Rejected,
        reject_request,
    ),
)


async def _set_status(
    platform: Platform, caller: Caller, params: WhichAgent, status: AgentStatus
) -> AgentData:
    row = await platform.database.write(
        lambda on: agents.set_status(on, caller, params.agent_id, status, platform.clock())
    )
    return AgentData(agent=AgentView.model_validate(row))
