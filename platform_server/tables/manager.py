"""The Disk Image Manager: its agents, policies, inbox and questions."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from platform_server.tables.base import Base, of_some, one_of

_PENDING = "status = 'pending'"


class AgentStatus(StrEnum):
    """A paused agent does nothing on its own."""

    ACTIVE = "active"
    PAUSED = "paused"


class Category(StrEnum):
    """What a policy is about, by the reference's names."""

    PROMOTE = "system.disk_image_publication_promote"
    ROLLBACK = "system.disk_image_publication_rollback"
    RETENTION = "system.disk_image_retention_update"
    WEBHOOK_REVOKE = "system.disk_image_webhook_revoke"
    WEBHOOK_ROTATE = "system.disk_image_webhook_rotate_secret"


class Policy(StrEnum):
    """The reference's words; `manager.policies` says what each means."""

    AUTO_APPROVE = "auto_approve"
    NOTIFY_AND_PROCEED = "notify_and_proceed"
    REQUIRE_APPROVAL = "require_approval"
    SILENT = "silent"
    BLOCK = "block"


class RequestStatus(StrEnum):
    """An approval request waits, or was decided; `superseded` when there is nothing left to decide."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"


class Agent(Base):
    """What acts on its own in an account."""

    __tablename__ = "agents"
    __table_args__ = (UniqueConstraint("account_id", "name"),)

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    name: Mapped[str]
    status: Mapped[AgentStatus] = mapped_column(one_of(AgentStatus), default=AgentStatus.ACTIVE)
    updated_at: Mapped[datetime]


class AutonomyPolicy(Base):
    """A policy that was set: the account's, or one node platform's if that is named."""

    __tablename__ = "autonomy_policies"
    __table_args__ = (
        of_some(
            "uq_autonomy_policies_account",
            "account_id",
            "action_category",
            where="node_platform_id IS NULL",
            unique=True,
        ),
        UniqueConstraint("node_platform_id", "action_category"),
    )

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    node_platform_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("node_platforms.id", ondelete="CASCADE")
    )
    action_category: Mapped[Category] = mapped_column(one_of(Category, 64))
    policy: Mapped[Policy] = mapped_column(one_of(Policy))
    updated_by_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    updated_at: Mapped[datetime]


class Candidate(Base):
    """The newest image that was published since a platform's default was last chosen; its id is the
    platform's.
    """

    __tablename__ = "promotion_candidates"

    id: Mapped[UUID] = mapped_column(ForeignKey("node_platforms.id"), primary_key=True)
    publication_id: Mapped[UUID] = mapped_column(ForeignKey("publications.id"))


class ApprovalRequest(Base):
    """A question of an agent: may it do this? Once it is decided the row stays as it is."""

    __tablename__ = "approval_requests"
    __table_args__ = (
        Index(None, "account_id", "id"),
        Index(None, "account_id", "status", "id"),
        Index(None, "natural_key", "decided_at"),
        # One question at a time, and one about what a platform's new nodes boot.
        of_some("uq_approval_requests_question", "account_id", "natural_key", where=_PENDING, unique=True),
        of_some(
            "uq_approval_requests_platform",
            "node_platform_id",
            "action_category",
            where=_PENDING,
            unique=True,
        ),
    )

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id"))
    action_category: Mapped[Category] = mapped_column(one_of(Category, 64))
    # what it is about: the same question has the same key
    natural_key: Mapped[str]
    node_platform_id: Mapped[UUID] = mapped_column(ForeignKey("node_platforms.id"))
    publication_id: Mapped[UUID] = mapped_column(ForeignKey("publications.id"))
    # what new nodes booted when it was asked
    prior_publication_id: Mapped[UUID | None] = mapped_column(ForeignKey("publications.id"))
    description: Mapped[str]
    status: Mapped[RequestStatus] = mapped_column(one_of(RequestStatus), default=RequestStatus.PENDING)
    expires_at: Mapped[datetime]
    decided_at: Mapped[datetime | None]
    # nobody where time or the world decided
    decided_by_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    decided_by: Mapped[str | None]
    reason: Mapped[str | None]
