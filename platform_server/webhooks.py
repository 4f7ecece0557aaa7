"""Webhooks: made, rotated, rested and revoked. A secret is shown once, when it is made."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import labels
from platform_server.deliveries import AnyRow
from platform_server.errors import Conflict, Invalid, StateError, missing
from platform_server.events import Kind, Told, emit
from platform_server.manager import policies
from platform_server.paging import newest_first
from platform_server.permissions import Caller
from platform_server.sealing import Sealer
from platform_server.tables import Category, Webhook, WebhookStatus

PREFIX = "pndis_"
PREVIEW = 8
LONGEST_OVERLAP = timedelta(days=7)


def create(
    session: Session, caller: Caller, sealer: Sealer, label: str, at: datetime
) -> tuple[Webhook, str]:
    """A new webhook and its secret. Raises Invalid for a label that breaks the rule or is taken."""
    label = labels.label("label", label)
    # what looks the same is the same: composed or not, full width or not (Unicode, NFKC)
    key = unicodedata.normalize("NFKC", label).casefold()
    taken = select(Webhook.id).where(Webhook.account_id == caller.account_id, Webhook.label_key == key)
    if session.scalars(taken).first() is not None:
        raise Invalid(field="label", value=label, rule="a label that no webhook of the account has yet")
    row = Webhook(
        account_id=caller.account_id,
        label=label,
        label_key=key,
        secret=b"",
        secret_preview="",
        created_by_id=caller.user_id,
        created_at=at,
        updated_at=at,
    )
    session.add(row)
    session.flush()
    return row, _new_secret(row, sealer)


def rotate(
    session: Session, caller: Caller, sealer: Sealer, webhook_id: UUID, overlap: timedelta, at: datetime
) -> tuple[Webhook, str]:
    """A new secret; the one before counts until `overlap` has passed, any older one no more.

    Raises Missing, and Conflict for a revoked webhook or when a policy blocks it.
    """
    if not timedelta(0) <= overlap <= LONGEST_OVERLAP:
        most = int(LONGEST_OVERLAP.total_seconds())
        raise Invalid(field="overlap_seconds", value=overlap.total_seconds(), rule=f"0 to {most}")
    row = _usable(session, caller, webhook_id)
    policies.require_unblocked(session, Category.WEBHOOK_ROTATE, row.account_id)
    if overlap:
        # Bound to the row, not to the column, so it can be moved as it is.
        row.previous_secret, row.previous_until = row.secret, at + overlap
    else:
        row.previous_secret = row.previous_until = None
    secret = _new_secret(row, sealer)
    row.last_rotated_at = row.updated_at = at
    emit(
        session,
        row.account_id,
        Kind.SECRET_ROTATED,
        {"webhook_id": str(row.id), "label": row.label, "by_user_id": _text(caller.user_id)},
        Told("operator"),
        at,
    )
    return row, secret


def change(
    session: Session,
    caller: Caller,
    webhook_id: UUID,
    at: datetime,
    *,
    status: WebhookStatus | None = None,
    plain_signatures: bool | None = None,
) -> Webhook:
    """Let a webhook rest or work again; say whether plain signatures are taken. Raises Missing, Conflict."""
    row = _usable(session, caller, webhook_id)
    if status is not None:
        row.status = status
    if plain_signatures is not None:
        row.plain_signatures = plain_signatures
    row.updated_at = at
    return row


def revoke(session: Session, caller: Caller, webhook_id: UUID, at: datetime) -> Webhook:
    """End a webhook for good; its row and its publications stay, its secrets go.

    Raises Missing, and Conflict when a policy blocks it.
    """
    row = get(session, caller, webhook_id, lock=True)
    if row.status is not WebhookStatus.REVOKED:
        policies.require_unblocked(session, Category.WEBHOOK_REVOKE, row.account_id)
        row.status = WebhookStatus.REVOKED
        row.secret, row.previous_secret, row.previous_until = b"", None, None
        row.updated_at = at
    return row


def get(session: Session, caller: Caller, webhook_id: UUID, *, lock: bool = False) -> Webhook:
    """One of the account's webhooks. Raises Missing."""
    query = select(Webhook).where(Webhook.id == webhook_id, Webhook.account_id == caller.account_id)
    row = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise missing("webhook", webhook_id)
    return row


def listing(session: Session, caller: Caller, limit: int, before: UUID | None = None) -> Sequence[Webhook]:
    """The account's webhooks, the newest first."""
    have = {Webhook.account_id: caller.account_id}
    return session.scalars(newest_first(select(Webhook), have, Webhook.id, before, limit)).all()


def secrets_of(row: AnyRow | Webhook, sealer: Sealer, at: datetime) -> list[str]:
    """The secrets that count now: the current one, and within the overlap the one before."""
    owner = _owner(row)
    found = [sealer.open(row.secret, owner)]
    if row.previous_secret is not None and row.previous_until is not None and at < row.previous_until:
        found.append(sealer.open(row.previous_secret, owner))
    return found


def has_key(session: Session, sealer: Sealer) -> bool:
    """Whether the newest webhook's secret opens, if there is one."""
    row = session.scalars(
        select(Webhook).where(Webhook.secret != b"").order_by(Webhook.id.desc()).limit(1)
    ).one_or_none()
    try:
        return row is None or bool(sealer.open(row.secret, _owner(row)))
    except StateError:
        return False


def _usable(session: Session, caller: Caller, webhook_id: UUID) -> Webhook:
    row = get(session, caller, webhook_id, lock=True)
    if row.status is WebhookStatus.REVOKED:
        raise Conflict(f"webhook {row.id} is revoked, which is for good", "make another webhook")
    return row


def _new_secret(row: Webhook, sealer: Sealer) -> str:
    secret = PREFIX + secrets.token_urlsafe(32)
    row.secret = sealer.seal(secret, _owner(row))
    row.secret_preview = secret[:PREVIEW]
    return secret


def _owner(row: AnyRow | Webhook) -> str:
    return f"webhook {row.id}"


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)
