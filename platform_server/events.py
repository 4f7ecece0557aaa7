"""Events: what happened, written in the transaction that did it, so that none is lost or made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from platform_server import event_counts
from platform_server.paging import newest_first
from platform_server.tables import Event, NodePlatform, Publication


class Kind(StrEnum):
    """Every kind there is."""

    PUBLISHED = "system.disk_image_published"
    PUBLISH_FAILED = "system.disk_image_publish_failed"
    RETENTION_SWEPT = "system.disk_image_retention_swept"
    ROLLED_BACK = "system.disk_image_rolled_back"
    DEFAULT_SET = "system.disk_image_default_set"
    PURGE_BLOCKED = "system.disk_image_purge_blocked"
    STUCK = "system.disk_image_publication_stuck"
    DOWNLOADED = "system.disk_image_downloaded"
    SECRET_ROTATED = "system.disk_image_webhook_secret_rotated"
    TOKEN_ROTATED = "system.ci_worker_token_rotated"
    MANAGER_PROCEEDED = "system.disk_image_manager_proceeded"
    APPROVAL_REQUESTED = "system.disk_image_approval_requested"
    APPROVAL_APPROVED = "system.disk_image_approval_approved"
    APPROVAL_REJECTED = "system.disk_image_approval_rejected"
    APPROVAL_EXPIRED = "system.disk_image_approval_expired"
    APPROVAL_SUPERSEDED = "system.disk_image_approval_superseded"
    POLICY_UPDATED = "system.autonomy_policy_updated"
    AGENT_PAUSED = "system.agent_paused"
    AGENT_RESUMED = "system.agent_resumed"


class Severity(StrEnum):
    """The reference's words."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


_SEVERITY: Mapping[Kind, Severity] = {
    Kind.PUBLISHED: Severity.LOW,
    Kind.PUBLISH_FAILED: Severity.HIGH,
    Kind.RETENTION_SWEPT: Severity.LOW,
    Kind.ROLLED_BACK: Severity.MEDIUM,
    Kind.DEFAULT_SET: Severity.LOW,
    Kind.PURGE_BLOCKED: Severity.HIGH,
    Kind.STUCK: Severity.HIGH,
    Kind.DOWNLOADED: Severity.LOW,
    Kind.SECRET_ROTATED: Severity.MEDIUM,
    Kind.TOKEN_ROTATED: Severity.MEDIUM,
    Kind.MANAGER_PROCEEDED: Severity.MEDIUM,
    Kind.APPROVAL_REQUESTED: Severity.MEDIUM,
    Kind.APPROVAL_APPROVED: Severity.LOW,
    Kind.APPROVAL_REJECTED: Severity.LOW,
    Kind.APPROVAL_EXPIRED: Severity.MEDIUM,
    Kind.APPROVAL_SUPERSEDED: Severity.LOW,
    Kind.POLICY_UPDATED: Severity.MEDIUM,
    Kind.AGENT_PAUSED: Severity.MEDIUM,
    Kind.AGENT_RESUMED: Severity.MEDIUM,
}


@dataclass(frozen=True, slots=True)
class Told:
    """By whom an event was caused (`source`), and which events belong together."""

    source: str
    correlation_id: str | None = None


def emit(
    session: Session, account_id: UUID, kind: Kind, payload: Mapping[str, Any], told: Told, at: datetime
) -> None:
    """Write an event in this transaction."""
    session.add(
        Event(
            account_id=account_id,
            kind=kind,
            severity=_SEVERITY[kind],
            source=told.source,
            correlation_id=told.correlation_id,
            payload=dict(payload),
            created_at=at,
        )
    )
    event_counts.written(session.connection(), kind)


def of_publication(row: Publication, platform: NodePlatform, **more: Any) -> dict[str, Any]:
    """The payload that every event about a publication has; what the reference calls platform_id is there by
    both names.
    """
    return {
        "publication_id": str(row.id),
        "node_platform_id": str(platform.id),
        "platform_id": str(platform.id),
        "platform_name": platform.name,
        "git_sha": row.git_sha,
        "oci_ref": row.oci_ref,
        "oci_digest": row.oci_digest,
        "sha256": row.sha256,
        "size_bytes": row.size_bytes,
        "firmware_ref": row.firmware_ref,
        "arch": row.arch,
        **more,
    }


def recent(
    session: Session,
    account_id: UUID,
    *,
    limit: int,
    kind_prefix: str = "",
    before: UUID | None = None,
    correlation_id: str | None = None,
) -> Sequence[Event]:
    """An account's events, the newest first, below the id `before`.

    Each kind that the prefix stands for is asked for on its own, so that a rare one among a million is found
    by its index.
    """

    def page(query: Select[Any], **have: Any) -> Sequence[Event]:
        columns = {getattr(Event, name): value for name, value in have.items()}
        return session.scalars(newest_first(query, columns, Event.id, before, limit)).all()

    query = select(Event)
    kinds = [kind for kind in Kind if kind.startswith(kind_prefix)]
    if correlation_id is not None:
        return page(query.where(Event.kind.in_(kinds)), account_id=account_id, correlation_id=correlation_id)
    if len(kinds) == len(Kind):
        return page(query, account_id=account_id)
    found = [event for kind in kinds for event in page(query, account_id=account_id, kind=kind)]
    return sorted(found, key=lambda event: event.id, reverse=True)[:limit]
