"""Agents: each account has one, the Disk Image Manager, which works or is paused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server.errors import missing
from platform_server.events import Kind, Told, emit
from platform_server.permissions import Caller
from platform_server.tables import MANAGER, Agent, AgentStatus

NAME = "Disk Image Manager"
SOURCE = MANAGER


def make(session: Session, account_id: UUID, at: datetime) -> Agent:
    """The manager of an account that has none."""
    row = Agent(account_id=account_id, name=NAME, created_at=at, updated_at=at)
    session.add(row)
    session.flush()
    return row


def manager(session: Session, account_id: UUID, at: datetime) -> Agent:
    """An account's manager, which stays as it is until the transaction ends.

    An account that a program without managers has made, while it still ran beside this one, gets its own.
    """
    found = session.scalars(
        select(Agent)
        .where(Agent.account_id == account_id, Agent.name == NAME)
        .with_for_update(read=True)
        .execution_options(populate_existing=True)
    ).one_or_none()
    return found or make(session, account_id, at)


def listing(session: Session, caller: Caller, name_contains: str = "") -> Sequence[Agent]:
    """The account's agents whose name has these letters, of whatever case."""
    rows = session.scalars(select(Agent).where(Agent.account_id == caller.account_id).order_by(Agent.name))
    return [row for row in rows if name_contains.casefold() in row.name.casefold()]


def get(session: Session, caller: Caller, agent_id: UUID | None) -> Agent:
    """One of the account's agents; the manager when none is named. Raises Missing."""
    return _one(session, caller, agent_id, lock=False)


def set_status(
    session: Session, caller: Caller, agent_id: UUID | None, status: AgentStatus, at: datetime
) -> Agent:
    """Pause an agent, or have it go on; an event tells each change. Raises Missing.

    A tick that has begun is waited for.
    """
    row = _one(session, caller, agent_id, lock=True)
    if row.status is not status:
        row.status, row.updated_at = status, at
        kind = Kind.AGENT_PAUSED if status is AgentStatus.PAUSED else Kind.AGENT_RESUMED
        payload = {
            "agent_id": str(row.id),
            "name": row.name,
            "by_user_id": None if caller.user_id is None else str(caller.user_id),
        }
        emit(session, row.account_id, kind, payload, Told("operator"), at)
    return row


def _one(session: Session, caller: Caller, agent_id: UUID | None, *, lock: bool) -> Agent:
    which = Agent.name == NAME if agent_id is None else Agent.id == agent_id
    query = select(Agent).where(Agent.account_id == caller.account_id, which)
    row = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise missing("agent", agent_id)
    return row
