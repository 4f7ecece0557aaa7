"""CI workers: machines that upload and publish for an account. A token is shown once, when it is made.

A worker's token is one of this platform's API; it registers no runner anywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import labels
from platform_server.errors import Conflict, Invalid, Missing, missing
from platform_server.events import Kind, Told, emit
from platform_server.paging import newest_first
from platform_server.permissions import Caller
from platform_server.tables import Worker, WorkerRole, WorkerStatus
from platform_server.tokens import WORKER_PREFIX, new_token

_LONGEST_DESCRIPTION = 1000


def create(
    session: Session, caller: Caller, name: str, description: str | None, at: datetime
) -> tuple[Worker, str]:
    """A new worker and its token; names need not differ. Raises Invalid for one that breaks the rule."""
    name = labels.label("name", name)
    if description is not None and (len(description) > _LONGEST_DESCRIPTION or "\x00" in description):
        raise Invalid(
            field="description", value=description, rule=f"at most {_LONGEST_DESCRIPTION} characters"
        )
    token, digest = new_token(WORKER_PREFIX)
    row = Worker(
        account_id=caller.account_id,
        name=name,
        description=description,
        role=WorkerRole.CI_WORKER,
        token_digest=digest,
        created_at=at,
        updated_at=at,
    )
    session.add(row)
    session.flush()
    return row, token


def rotate(session: Session, caller: Caller, worker_id: UUID, at: datetime) -> tuple[Worker, str]:
    """A new token; the one before is nobody's from now on. Raises Missing, and Conflict when revoked."""
    row = get(session, caller, worker_id, lock=True)
    if row.status is WorkerStatus.REVOKED:
        raise Conflict(f"worker {row.id} is revoked, which is for good", "make another worker")
    token, row.token_digest = new_token(WORKER_PREFIX)
    row.updated_at = at
    by = None if caller.user_id is None else str(caller.user_id)
    payload = {"worker_id": str(row.id), "name": row.name, "by_user_id": by}
    emit(session, row.account_id, Kind.TOKEN_ROTATED, payload, Told("operator"), at)
    return row, token


def terminate(session: Session, caller: Caller, worker_id: UUID, at: datetime) -> Worker:
    """End a worker for good; its row stays. Raises Missing."""
    row = get(session, caller, worker_id, lock=True)
    if row.status is not WorkerStatus.REVOKED:
        row.status, row.updated_at = WorkerStatus.REVOKED, at
    return row


def get(session: Session, caller: Caller, worker_id: UUID, *, lock: bool = False) -> Worker:
    """One of the account's CI workers. Raises Missing, also for a worker of another role."""
    query = select(Worker).where(Worker.id == worker_id, Worker.account_id == caller.account_id)
    row = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise missing("CI worker", worker_id)
    if row.role is not WorkerRole.CI_WORKER:
        raise Missing(f"worker {worker_id}: not a ci_worker, but a {row.role}", "name a CI worker")
    return row


def listing(session: Session, caller: Caller, limit: int, before: UUID | None = None) -> Sequence[Worker]:
    """The account's CI workers, the newest first."""
    query, have = (
        select(Worker).where(Worker.role == WorkerRole.CI_WORKER),
        {Worker.account_id: caller.account_id},
    )
    return session.scalars(newest_first(query, have, Worker.id, before, limit)).all()
