"""Rows as tests need them, straight in the database."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import deliveries
from platform_server.identifiers import new_id
from platform_server.tables import Account, Agent, ApprovalRequest, Category, NodePlatform, Publication


def first_account_id(session: Session) -> UUID:
    return session.scalars(select(Account.id).order_by(Account.id).limit(1)).one()


def node_platform(session: Session, at: datetime, name: str = "debian", **fields: Any) -> NodePlatform:
    """A node platform in the first account."""
    values: dict[str, Any] = {
        "account_id": first_account_id(session),
        "arch": "amd64",
        "trusted_registries": [],
        "disk_image_retention_count": 3,
        "created_at": at,
        "updated_at": at,
    }
    row = NodePlatform(name=name, **(values | fields))
    session.add(row)
    session.flush()
    return row


def publication(session: Session, at: datetime, platform: NodePlatform, **fields: Any) -> Publication:
    """A queued publication, or one with other columns."""
    values: dict[str, Any] = {
        "account_id": platform.account_id,
        "node_platform_id": platform.id,
        "correlation_id": str(new_id()),
        "arch": platform.arch,
        "oci_ref": "registry.example/os/debian:13",
        "payload": {},
        "created_at": at,
    }
    row = Publication(**(values | fields))
    session.add(row)
    session.flush()
    return row


def queued(session: Session, at: datetime, **columns: Any) -> UUID:
    """A publication and its job, as the webhook makes them."""
    row = {
        "id": new_id(),
        "correlation_id": str(new_id()),
        "arch": "amd64",
        "oci_ref": "registry.example/os/debian:13",
        "payload": {},
        **dict.fromkeys(("webhook_id", "git_sha", "oci_digest", "sha256", "size_bytes", "firmware_ref")),
        **columns,
    }
    deliveries.accept(session.connection(), [row], at)
    return UUID(str(row["id"]))


def approval_request(session: Session, at: datetime, row: Publication, **fields: Any) -> ApprovalRequest:
    """What the manager of the row's account asks about it."""
    asked = ApprovalRequest(
        account_id=row.account_id,
        agent_id=session.scalars(select(Agent.id).where(Agent.account_id == row.account_id)).one(),
        action_category=Category.PROMOTE,
        natural_key=f"{Category.PROMOTE}:{row.id}",
        node_platform_id=row.node_platform_id,
        publication_id=row.id,
        description="promote it",
        expires_at=at + timedelta(hours=12),
        created_at=at,
        **fields,
    )
    session.add(asked)
    session.flush()
    return asked


def verified(number: int = 1) -> dict[str, Any]:
    """The columns of an image that was verified."""
    return {
        "cosign_verified": True,
        "oci_digest": f"sha256:{number:064x}",
        "sha256": f"{number:064x}",
        "git_sha": f"{number:040x}",
        "size_bytes": 1000 + number,
        "certificate_identity": "https://git.example/org/image",
        "certificate_issuer": "https://git.example",
        "sbom_digest": f"sha256:{number:063x}a",
        "provenance_digest": f"sha256:{number:063x}b",
    }
