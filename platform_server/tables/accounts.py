"""Accounts, who acts in them, and what happened there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from platform_server.tables.base import Base, of_some, one_of

# `source` of the events that the Disk Image Manager causes
MANAGER = "disk_image_manager"


class WorkerStatus(StrEnum):
    """The reference's words."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"


class WorkerRole(StrEnum):
    """`ci_worker` uploads and publishes images; `service` runs the account's sweeps from outside."""

    CI_WORKER = "ci_worker"
    SERVICE = "service"


class Account(Base):
    """Whose everything else is."""

    __tablename__ = "accounts"

    name: Mapped[str] = mapped_column(unique=True)


class User(Base):
    """A person or program that operates an account."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("account_id", "name"),)

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    name: Mapped[str]


class Token(Base):
    """A user's token: only its digest. It has the permissions that it was made with."""

    __tablename__ = "tokens"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), index=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    permissions: Mapped[Sequence[str]]
    revoked_at: Mapped[datetime | None]


class Worker(Base):
    """A machine that speaks for an account; its token is kept as a digest."""

    __tablename__ = "workers"
    __table_args__ = (Index(None, "account_id", "id"),)

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    name: Mapped[str]
    description: Mapped[str | None]
    role: Mapped[WorkerRole] = mapped_column(one_of(WorkerRole))
    status: Mapped[WorkerStatus] = mapped_column(one_of(WorkerStatus), default=WorkerStatus.ACTIVE)
    token_digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    last_seen_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]


class SecretPickup(Base):
    """A secret that waits to be read, once and by one user. What was read or has expired is deleted; its row
    says so for a while.
    """

    __tablename__ = "secret_pickups"
    __table_args__ = (
        Index(None, "expires_at"),
        of_some("ix_secret_pickups_sealed", "expires_at", where="sealed IS NOT NULL"),
    )

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    # the action that made it, and the field of its answer
    action: Mapped[str]
    field: Mapped[str]
    sealed: Mapped[bytes | None]
    expires_at: Mapped[datetime]
    read_at: Mapped[datetime | None]


class Event(Base):
    """Something that happened, written in the transaction that did it."""

    __tablename__ = "events"
    __table_args__ = (
        Index(None, "account_id", "id"),
        Index(None, "account_id", "kind", "id"),
        Index(None, "account_id", "correlation_id", "id"),
        of_some("ix_events_manager", "account_id", "kind", "created_at", where=f"source = '{MANAGER}'"),
    )

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    kind: Mapped[str]
    severity: Mapped[str] = mapped_column(String(16))
    source: Mapped[str]
    correlation_id: Mapped[str | None]
    payload: Mapped[dict[str, Any]]
