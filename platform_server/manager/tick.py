"""The manager's turn: every few minutes, beside the server, for every node platform that has something new.

Several processes may tick on one database: each decision is one transaction that holds the node platform and
finds what another one has done. Rows that are stuck are found by the stuck sweep, which runs while the
manager is paused too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from uuid import UUID

import anyio
from sqlalchemy import select, union
from sqlalchemy.orm import Session

from platform_server import defaults, node_platforms
from platform_server.errors import Unavailable
from platform_server.events import Kind, Told, emit, of_publication
from platform_server.manager import agents, approvals, candidates, policies
from platform_server.metrics import sweeping
from platform_server.permissions import Caller
from platform_server.settings import Schedule
from platform_server.state_folder import Platform
from platform_server.tables import (
    Agent,
    AgentStatus,
    ApprovalRequest,
    Candidate,
    Category,
    NodePlatform,
    Policy,
    Publication,
    RequestStatus,
)

log = logging.getLogger(__name__)


async def run(platform: Platform) -> None:
    """Tick now and then at the schedule's interval, until cancelled."""
    while True:
        with sweeping("manager"):
            await tick(platform)
        await anyio.sleep(platform.settings.schedule.manager.total_seconds())


async def tick(platform: Platform) -> None:
    """Expire what waited for too long, then decide for each node platform. One that fails stops no other:
    the last error is raised when all had their turn. A database that is away or can't be written is every
    one's, and raised at once.
    """
    database, schedule, at = platform.database, platform.settings.schedule, platform.clock()
    failed: Exception | None = None
    for request_id in await database.read(lambda on: approvals.overdue(on, at)):
        try:
            await database.write(partial(approvals.expire, request_id=request_id, at=at))
        except Unavailable:
            raise
        except Exception as error:
            log.exception("approval request %s could not be expired", request_id)
            failed = error
    for platform_id in await database.read(_open):
        try:
            await database.write(partial(decide, platform_id=platform_id, schedule=schedule, at=at))
        except Unavailable:
            raise
        except Exception as error:
            log.exception("the manager could not decide for node platform %s", platform_id)
            failed = error
    if failed is not None:
        raise failed


def decide(session: Session, platform_id: UUID, schedule: Schedule, at: datetime) -> None:
    """One node platform's turn, in one transaction.

    1. A paused manager does nothing.
    2. A request about anything but the newest image since the default was chosen is superseded.
    3. The policy says what becomes of that image: it is the default now, a request asks for it, or nothing.
    4. A request that the policy no longer asks for is superseded.
    """
    platform = node_platforms.hold(session, platform_id)
    agent = agents.manager(session, platform.account_id, at)
    if agent.status is AgentStatus.PAUSED:  # 1
        return
    row = candidates.get(session, platform)
    request = approvals.pending(session, platform)
    if request is not None and (row is None or request.publication_id != row.id):  # 2
        approvals.supersede(session, request, platform, _gone(row), at)
        request = None
    if row is None:
        candidates.clear(session, platform)
        return
    policy = policies.effective(session, Category.PROMOTE, platform.account_id, platform.id)  # 3
    if policy is Policy.REQUIRE_APPROVAL:
        if request is None:
            approvals.ask(
                session,
                agent,
                platform,
                row,
                at,
                lasts=schedule.approval,
                suppressed=schedule.rejection,
            )
        return
    if request is not None:  # 4
        approvals.supersede(session, request, platform, f"the policy is {policy} now", at)
    if policy in (Policy.AUTO_APPROVE, Policy.NOTIFY_AND_PROCEED):
        _promote(session, agent, platform, row, policy, at)


def _promote(
    session: Session, agent: Agent, platform: NodePlatform, row: Publication, policy: Policy, at: datetime
) -> None:
    caller = Caller(platform.account_id, agent.name, frozenset())
    defaults.set_default(session, caller, row.id, platform.id, at, source=agents.SOURCE)
    log.info("the manager made publication %s the default", row.id, extra={"oci_digest": row.oci_digest})
    if policy is Policy.NOTIFY_AND_PROCEED:
        payload = of_publication(
            row, platform, action_category=Category.PROMOTE, policy=policy, agent_id=str(agent.id)
        )
        told = Told(agents.SOURCE, row.correlation_id)
        emit(session, platform.account_id, Kind.MANAGER_PROCEEDED, payload, told, at)


def _open(session: Session) -> Sequence[UUID]:
    """Node platforms that have a candidate or a request."""
    waiting = select(ApprovalRequest.node_platform_id).where(ApprovalRequest.status == RequestStatus.PENDING)
    return session.scalars(union(select(Candidate.id), waiting)).all()


def _gone(row: Publication | None) -> str:
    if row is None:
        return "the default was chosen, or the image was retired"
    return f"publication {row.id} is newer"
