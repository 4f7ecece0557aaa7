"""Tokens: made from 256 random bits, shown once, kept as SHA-256 digests, and whose they are.

A digest without salt is enough, since nobody can guess what it is of; looking it up by index tells an
attacker's clock nothing about other tokens.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from platform_server.errors import Unauthenticated
from platform_server.permissions import Caller, Permission
from platform_server.tables import Token, User, Worker, WorkerRole, WorkerStatus

USER_PREFIX = "pnu_"
WORKER_PREFIX = "swt_"

# What a worker's role may do; its token says nothing else.
ROLES = {
    WorkerRole.CI_WORKER: frozenset({Permission.PUBLISH_DISK_IMAGE}),
    WorkerRole.SERVICE: frozenset({Permission.PUBLISH_DISK_IMAGE, Permission.MODULES_UPDATE}),
}
_LONGEST = 512


def new_token(prefix: str) -> tuple[str, bytes]:
    """A token and its digest."""
    token = prefix + secrets.token_urlsafe(32)
    return token, digest_of(token)


def digest_of(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


def authenticate(session: Session, token: str | None) -> Caller:
    """Whose token it is. Raises Unauthenticated for none, an unknown, a revoked one, or a worker that is not
    active.
    """
    if not token or len(token) > _LONGEST:
        raise _unknown()
    if token.startswith(WORKER_PREFIX):
        return _worker(session, token)
    found = session.execute(
        select(Token, User)
        .join(User, Token.user_id == User.id)
        .where(Token.digest == digest_of(token), Token.revoked_at.is_(None))
    ).one_or_none()
    if found is None:
        raise _unknown()
    row, user = found
    return Caller(user.account_id, user.name, frozenset(row.permissions), user_id=user.id)


def seen(session: Session, caller: Caller, now: datetime) -> None:
    """Note that a worker was there."""
    session.execute(update(Worker).where(Worker.id == caller.worker_id).values(last_seen_at=now))


def _worker(session: Session, token: str) -> Caller:
    worker = session.scalars(
        select(Worker).where(Worker.token_digest == digest_of(token), Worker.status == WorkerStatus.ACTIVE)
    ).one_or_none()
    if worker is None:
        raise _unknown()
    return Caller(worker.account_id, worker.name, ROLES[worker.role], worker_id=worker.id)


def _unknown() -> Unauthenticated:
    return Unauthenticated(
        "no valid token", "send Authorization: Bearer TOKEN; disk-image platform token makes one"
    )
