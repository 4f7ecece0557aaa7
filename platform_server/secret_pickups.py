"""Secrets that an action made and that must not stand in its answer: each waits, sealed, to be read once.

Who may read one: the user who called the action, in its account, with a token that holds SECRETS_READ. So
the token of a program that calls actions can be one that reads no secret.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from platform_server.errors import Conflict, Forbidden, missing
from platform_server.identifiers import new_id
from platform_server.permissions import Caller, Permission
from platform_server.sealing import Sealer
from platform_server.tables import SecretPickup

# How long a row says that its secret was read, or was not in time.
_REMEMBERED = timedelta(days=7)


def keep(
    session: Session,
    caller: Caller,
    sealer: Sealer,
    secret: str,
    made_by: tuple[str, str],
    at: datetime,
    lifetime: timedelta,
) -> SecretPickup:
    """Seal a secret for the caller, who is a user. `made_by` is the action and the field of its answer."""
    if caller.user_id is None:
        raise Forbidden(f"{caller.name} is a worker", "use a user's token: disk-image platform token")
    purge(session, at)
    action, field = made_by
    row = SecretPickup(
        id=new_id(),
        account_id=caller.account_id,
        user_id=caller.user_id,
        action=action,
        field=field,
        created_at=at,
        expires_at=at + lifetime,
    )
    row.sealed = sealer.seal(secret, _owner(row))
    session.add(row)
    return row


def take(
    session: Session, caller: Caller, sealer: Sealer, secret_id: UUID, at: datetime
) -> tuple[SecretPickup, str]:
    """The secret, which is nobody's to read from then on. Raises Forbidden, Missing and Conflict.

    1. The caller holds SECRETS_READ.
    2. The row is the caller's own, by account and user, and nobody else takes it meanwhile.
    3. It was not read before.
    4. It has not expired.
    5. The ciphertext opens for this row alone; it is deleted in the transaction that answers.
    """
    caller.require(Permission.SECRETS_READ)  # 1
    row = session.scalars(  # 2
        select(SecretPickup)
        .where(
            SecretPickup.id == secret_id,
            SecretPickup.account_id == caller.account_id,
            SecretPickup.user_id == caller.user_id,
        )
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise missing("secret", secret_id)
    if row.read_at is not None:  # 3
        raise Conflict(
            f"secret {row.id} was read at {row.read_at.isoformat()}, and can be read once",
            f"make another {row.field}; if it was not you who read it, revoke what it belongs to",
        )
    if row.sealed is None or row.expires_at <= at:  # 4
        raise Conflict(
            f"secret {row.id} expired at {row.expires_at.isoformat()}", f"make another {row.field}"
        )
    secret = sealer.open(row.sealed, _owner(row))  # 5
    row.sealed, row.read_at = None, at
    return row, secret


def purge(session: Session, at: datetime) -> None:
    """Delete the secrets that have expired, and rows that are no longer of use."""
    session.execute(
        update(SecretPickup)
        .where(SecretPickup.expires_at <= at, SecretPickup.sealed.is_not(None))
        .values(sealed=None)
    )
    session.execute(delete(SecretPickup).where(SecretPickup.expires_at <= at - _REMEMBERED))


def _owner(row: SecretPickup) -> str:
    return f"secret {row.id} of user {row.user_id} in account {row.account_id}"
