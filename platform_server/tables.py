"""The database's tables. Column names are those that the answers of the API use.

Times are UTC. Ids are UUIDs of version 7: ordered by creation, so that a list's next page starts after the
last id of the one before. What has a name in one account only carries the account's id in its unique keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from platform_server.identifiers import new_id
from platform_server.states import Status

_HOLDS_IMAGE = "status IN ('published', 'retired') AND published_at IS NOT NULL"
_CLAIMS_COMMIT = "git_sha IS NOT NULL AND status IN ('queued', 'awaiting_upload', 'verifying')"
_PENDING = "status = 'pending'"
_HOLDS_COMMIT = f"git_sha IS NOT NULL AND {_HOLDS_IMAGE}"
# `source` of the events that the Disk Image Manager causes
MANAGER = "disk_image_manager"


class UtcTime(TypeDecorator[datetime]):
    """An aware time, kept in UTC; SQLite itself knows no zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _words(words: type[StrEnum], length: int = 24) -> Enum:
    """One of a few words, which the database checks."""
    return Enum(
        words,
        native_enum=False,
        create_constraint=True,
        length=length,
        name=words.__name__.lower(),
        values_callable=lambda kind: [word.value for word in kind],
    )


def is_in(*statuses: Status) -> ColumnElement[bool]:
    """Whether a publication has one of these statuses, in the words of the indexes that are of some rows."""
    words = [
        literal(each, Publication.status.type, literal_execute=True) for each in Status if each in statuses
    ]
    return Publication.status == words[0] if len(words) == 1 else Publication.status.in_(words)


def _of_some(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index of the rows for which `where` holds."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


class Base(DeclarativeBase):
    """Every table. Constraints have names, so that a migration can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {datetime: UtcTime, dict[str, Any]: JSON, Sequence[str]: JSON, str: Text}

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    created_at: Mapped[datetime]


class WebhookStatus(StrEnum):
    """A webhook takes deliveries, rests, or is gone for good."""

    ACTIVE = "active"
    DISABLED = "disabled"
    REVOKED = "revoked"


class WorkerStatus(StrEnum):
    """The reference's words."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"


class WorkerRole(StrEnum):
    """`ci_worker` uploads and publishes images; `service` runs the account's sweeps from outside."""

    CI_WORKER = "ci_worker"
    SERVICE = "service"


class InstanceStatus(StrEnum):
    """Whether a node may still boot its image."""

    RUNNING = "running"
    TERMINATED = "terminated"


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
    role: Mapped[WorkerRole] = mapped_column(_words(WorkerRole))
    status: Mapped[WorkerStatus] = mapped_column(_words(WorkerStatus), default=WorkerStatus.ACTIVE)
    token_digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    last_seen_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]


class NodePlatform(Base):
    """A kind of node and the policy for its images. `default_publication_id` is what new nodes boot."""

    __tablename__ = "node_platforms"
    __table_args__ = (UniqueConstraint("account_id", "name"), Index(None, "account_id", "id"))

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    name: Mapped[str]
    description: Mapped[str | None]
    arch: Mapped[str] = mapped_column(String(16))
    cosign_identity_regexp: Mapped[str | None]
    cosign_issuer_regexp: Mapped[str | None]
    trusted_registries: Mapped[Sequence[str]]
    disk_image_retention_count: Mapped[int]
    default_publication_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("publications.id", use_alter=True), index=True
    )
    updated_at: Mapped[datetime]


class Webhook(Base):
    """Where a pipeline reports images. Until `previous_until` the secret before the rotation counts too."""

    __tablename__ = "webhooks"
    __table_args__ = (UniqueConstraint("account_id", "label_key"), Index(None, "account_id", "id"))

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    label: Mapped[str]
    # the label without case and form: it is unique so
    label_key: Mapped[str]
    status: Mapped[WebhookStatus] = mapped_column(_words(WebhookStatus), default=WebhookStatus.ACTIVE)
    secret: Mapped[bytes]
    secret_preview: Mapped[str] = mapped_column(String(8))
    previous_secret: Mapped[bytes | None]
    previous_until: Mapped[datetime | None]
    plain_signatures: Mapped[bool] = mapped_column(default=True)
    received_count: Mapped[int] = mapped_column(BigInteger, default=0)
    last_received_at: Mapped[datetime | None]
    last_rotated_at: Mapped[datetime | None]
    created_by_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    updated_at: Mapped[datetime]


class Publication(Base):
    """One image for one platform, from the first word of it to its end. `states.py` moves it.

    Until it is verified, git_sha, sha256, size_bytes and oci_digest are what the sender said, or null; once
    published, what was found. `duplicate_of_id` is set on a failed row whose image another has published.
    """

    __tablename__ = "publications"
    __table_args__ = (
        Index(None, "account_id", "id"),
        Index(None, "account_id", "status", "id"),
        Index(None, "node_platform_id", "id"),
        Index(None, "node_platform_id", "status", "id"),
        Index(None, "status", "id"),
        # with the status: however often a commit or image fails, what counts is found at once
        Index(None, "node_platform_id", "git_sha", "status"),
        Index(None, "oci_digest", "node_platform_id", "status"),
        # What has come to its end in another way is in none of these, however much there is of it.
        _of_some("ix_publications_no_duplicate", "node_platform_id", "id", where="duplicate_of_id IS NULL"),
        _of_some("ix_publications_failed", "node_platform_id", "failed_at", where="status = 'failed'"),
        _of_some("ix_publications_retired", "node_platform_id", "retired_at", where="status = 'retired'"),
        _of_some("ix_publications_kept", "node_platform_id", "published_at", "id", where=_HOLDS_IMAGE),
        _of_some("ix_publications_stuck", "account_id", "id", where="stuck_reported_at IS NOT NULL"),
        _of_some("ix_publications_purge_blocked", "id", where="purge_blocked IS NOT NULL"),
        # One row at a time can claim a commit, and one can have it; one can have an image.
        _of_some(
            "uq_publications_claim", "node_platform_id", "arch", "git_sha", where=_CLAIMS_COMMIT, unique=True
        ),
        _of_some(
            "uq_publications_commit", "node_platform_id", "arch", "git_sha", where=_HOLDS_COMMIT, unique=True
        ),
        _of_some(
            "uq_publications_image",
            "node_platform_id",
            "arch",
            "oci_digest",
            where=_HOLDS_IMAGE,
            unique=True,
        ),
    )

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    node_platform_id: Mapped[UUID] = mapped_column(ForeignKey("node_platforms.id"))
    webhook_id: Mapped[UUID | None] = mapped_column(ForeignKey("webhooks.id"))
    worker_id: Mapped[UUID | None] = mapped_column(ForeignKey("workers.id"))
    correlation_id: Mapped[str]
    status: Mapped[Status] = mapped_column(_words(Status), default=Status.QUEUED)
    arch: Mapped[str] = mapped_column(String(16))
    git_sha: Mapped[str | None]
    oci_ref: Mapped[str | None]
    oci_digest: Mapped[str | None]
    sha256: Mapped[str | None]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    firmware_ref: Mapped[str | None]
    # what the sender said, as it came
    payload: Mapped[dict[str, Any]]
    upload_sha256: Mapped[str | None]
    upload_size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    cosign_verified: Mapped[bool] = mapped_column(default=False)
    certificate_identity: Mapped[str | None]
    certificate_issuer: Mapped[str | None]
    sbom_digest: Mapped[str | None]
    provenance_digest: Mapped[str | None]
    error_message: Mapped[str | None]
    duplicate_of_id: Mapped[UUID | None] = mapped_column(ForeignKey("publications.id"))
    attempt_count: Mapped[int] = mapped_column(default=0)
    awaiting_upload_at: Mapped[datetime | None]
    verifying_at: Mapped[datetime | None]
    verified_at: Mapped[datetime | None]
    published_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    retired_at: Mapped[datetime | None]
    reactivated_at: Mapped[datetime | None]
    purge_started_at: Mapped[datetime | None]
    purge_blocked: Mapped[str | None]
    purged_at: Mapped[datetime | None]
    stuck_reported_at: Mapped[datetime | None]


class Delivery(Base):
    """A webhook's delivery that was answered with a publication: its replays get the same answer.

    `delivery_key` is `id:` and the webhook-id, or `body:` and the body's sha256 where there is no id.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("webhook_id", "delivery_key"),
        Index(None, "webhook_id", "body_sha256", "created_at"),
        Index(None, "created_at"),
    )

    webhook_id: Mapped[UUID] = mapped_column(ForeignKey("webhooks.id"))
    delivery_key: Mapped[str]
    body_sha256: Mapped[str] = mapped_column(String(64))
    publication_id: Mapped[UUID] = mapped_column(ForeignKey("publications.id"))


class Job(Base):
    """A publication that waits to be verified; its id is the publication's. Whoever verifies it holds the
    lease, and only the holder may write the outcome.
    """

    __tablename__ = "verification_jobs"
    __table_args__ = (Index(None, "available_at"),)

    id: Mapped[UUID] = mapped_column(ForeignKey("publications.id"), primary_key=True)
    # not before then; while it is leased, when the lease ends
    available_at: Mapped[datetime]
    lease: Mapped[UUID | None]
    attempts: Mapped[int] = mapped_column(default=0)
    last_error: Mapped[str | None]


class Event(Base):
    """Something that happened, written in the transaction that did it."""

    __tablename__ = "events"
    __table_args__ = (
        Index(None, "account_id", "id"),
        Index(None, "account_id", "kind", "id"),
        Index(None, "account_id", "correlation_id", "id"),
        _of_some("ix_events_manager", "account_id", "kind", "created_at", where=f"source = '{MANAGER}'"),
    )

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    kind: Mapped[str]
    severity: Mapped[str] = mapped_column(String(16))
    source: Mapped[str]
    correlation_id: Mapped[str | None]
    payload: Mapped[dict[str, Any]]


class Instance(Base):
    """A node, and the publication that it boots until it is terminated."""

    __tablename__ = "instances"
    __table_args__ = (
        Index(None, "account_id", "id"),
        Index(None, "publication_id", "status"),
    )

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    node_platform_id: Mapped[UUID] = mapped_column(ForeignKey("node_platforms.id"))
    publication_id: Mapped[UUID] = mapped_column(ForeignKey("publications.id"))
    name: Mapped[str]
    status: Mapped[InstanceStatus] = mapped_column(_words(InstanceStatus), default=InstanceStatus.RUNNING)
    terminated_at: Mapped[datetime | None]


class Purge(Base):
    """A purge that has begun, and what it deletes; its id is the publication's. It is read from the registry
    before anything is gone, so that a purge that was cut off is finished.
    """

    __tablename__ = "purges"

    id: Mapped[UUID] = mapped_column(ForeignKey("publications.id"), primary_key=True)
    referrers: Mapped[Sequence[str]]
    blobs: Mapped[Sequence[str]]


class SecretPickup(Base):
    """A secret that waits to be read, once and by one user. What was read or has expired is deleted; its row
    says so for a while.
    """

    __tablename__ = "secret_pickups"
    __table_args__ = (
        Index(None, "expires_at"),
        _of_some("ix_secret_pickups_sealed", "expires_at", where="sealed IS NOT NULL"),
    )

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    # the action that made it, and the field of its answer
    action: Mapped[str]
    field: Mapped[str]
    sealed: Mapped[bytes | None]
    expires_at: Mapped[datetime]
    read_at: Mapped[datetime | None]


class Agent(Base):
    """What acts on its own in an account."""

    __tablename__ = "agents"
    __table_args__ = (UniqueConstraint("account_id", "name"),)

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    name: Mapped[str]
    status: Mapped[AgentStatus] = mapped_column(_words(AgentStatus), default=AgentStatus.ACTIVE)
    updated_at: Mapped[datetime]


class AutonomyPolicy(Base):
    """A policy that was set: the account's, or one node platform's if that is named."""

    __tablename__ = "autonomy_policies"
    __table_args__ = (
        _of_some(
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
    action_category: Mapped[Category] = mapped_column(_words(Category, 64))
    policy: Mapped[Policy] = mapped_column(_words(Policy))
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
        _of_some("uq_approval_requests_question", "account_id", "natural_key", where=_PENDING, unique=True),
        _of_some(
            "uq_approval_requests_platform",
            "node_platform_id",
            "action_category",
            where=_PENDING,
            unique=True,
        ),
    )

    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    agent_id: Mapped[UUID] = mapped_column(ForeignKey("agents.id"))
    action_category: Mapped[Category] = mapped_column(_words(Category, 64))
    # what it is about: the same question has the same key
    natural_key: Mapped[str]
    node_platform_id: Mapped[UUID] = mapped_column(ForeignKey("node_platforms.id"))
    publication_id: Mapped[UUID] = mapped_column(ForeignKey("publications.id"))
    # what new nodes booted when it was asked
    prior_publication_id: Mapped[UUID | None] = mapped_column(ForeignKey("publications.id"))
    description: Mapped[str]
    status: Mapped[RequestStatus] = mapped_column(_words(RequestStatus), default=RequestStatus.PENDING)
    expires_at: Mapped[datetime]
    decided_at: Mapped[datetime | None]
    # nobody where time or the world decided
    decided_by_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    decided_by: Mapped[str | None]
    reason: Mapped[str | None]
