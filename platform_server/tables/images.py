"""Node platforms, their images from the first word to the end, and what boots them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, ForeignKey, Index, String, UniqueConstraint, literal
from sqlalchemy.orm import Mapped, mapped_column

from platform_server.states import Status
from platform_server.tables.base import Base, of_some, one_of

_HOLDS_IMAGE = "status IN ('published', 'retired') AND published_at IS NOT NULL"
_CLAIMS_COMMIT = "git_sha IS NOT NULL AND status IN ('queued', 'awaiting_upload', 'verifying')"
_HOLDS_COMMIT = f"git_sha IS NOT NULL AND {_HOLDS_IMAGE}"


class InstanceStatus(StrEnum):
    """Whether a node may still boot its image."""

    RUNNING = "running"
    TERMINATED = "terminated"


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
        of_some("ix_publications_no_duplicate", "node_platform_id", "id", where="duplicate_of_id IS NULL"),
        of_some("ix_publications_failed", "node_platform_id", "failed_at", where="status = 'failed'"),
        of_some("ix_publications_retired", "node_platform_id", "retired_at", where="status = 'retired'"),
        of_some("ix_publications_kept", "node_platform_id", "published_at", "id", where=_HOLDS_IMAGE),
        of_some("ix_publications_stuck", "account_id", "id", where="stuck_reported_at IS NOT NULL"),
        of_some("ix_publications_purge_blocked", "id", where="purge_blocked IS NOT NULL"),
        # One row at a time can claim a commit, and one can have it; one can have an image.
        of_some(
            "uq_publications_claim", "node_platform_id", "arch", "git_sha", where=_CLAIMS_COMMIT, unique=True
        ),
        of_some(
            "uq_publications_commit", "node_platform_id", "arch", "git_sha", where=_HOLDS_COMMIT, unique=True
        ),
        of_some(
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
    status: Mapped[Status] = mapped_column(one_of(Status), default=Status.QUEUED)
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


def is_in(*statuses: Status) -> ColumnElement[bool]:
    """Whether a publication has one of these statuses, in the words of the indexes that are of some rows."""
    words = [
        literal(each, Publication.status.type, literal_execute=True) for each in Status if each in statuses
    ]
    return Publication.status == words[0] if len(words) == 1 else Publication.status.in_(words)


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
    status: Mapped[InstanceStatus] = mapped_column(one_of(InstanceStatus), default=InstanceStatus.RUNNING)
    terminated_at: Mapped[datetime | None]


class Purge(Base):
    """A purge that has begun, and what it deletes; its id is the publication's. It is read from the registry
    before anything is gone, so that a purge that was cut off is finished.
    """

    __tablename__ = "purges"

    id: Mapped[UUID] = mapped_column(ForeignKey("publications.id"), primary_key=True)
    referrers: Mapped[Sequence[str]]
    blobs: Mapped[Sequence[str]]
