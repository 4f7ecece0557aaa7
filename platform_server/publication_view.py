"""A publication as every surface answers it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from platform_server.api import View
from platform_server.states import Status
from platform_server.stuck import advice
from platform_server.tables import Publication


class PublicationView(View):
    """A publication. Until it is published, sha256, size_bytes, git_sha and oci_digest are what its sender
    said; from then on what was found. `duplicate_of_id` is the publication that has the same image. `stuck`
    says what to do about one that makes no progress, `purge_blocked` why its image could not be deleted.
    """

    id: UUID
    account_id: UUID
    node_platform_id: UUID
    platform_id: UUID
    webhook_id: UUID | None
    triggered_by_worker_id: UUID | None
    correlation_id: str
    status: Status
    is_default: bool
    arch: str
    git_sha: str | None
    git_sha_short: str | None
    oci_ref: str | None
    oci_digest: str | None
    sha256: str | None
    sha256_short: str | None
    size_bytes: int | None
    firmware_ref: str | None
    cosign_verified: bool
    certificate_identity: str | None
    certificate_issuer: str | None
    sbom_digest: str | None
    provenance_digest: str | None
    error_message: str | None
    duplicate_of_id: UUID | None
    attempt_count: int
    stuck: str | None
    purge_blocked: str | None
    created_at: datetime
    awaiting_upload_at: datetime | None
    verifying_at: datetime | None
    verified_at: datetime | None
    published_at: datetime | None
    failed_at: datetime | None
    retired_at: datetime | None
    reactivated_at: datetime | None
    purged_at: datetime | None


def view(row: Publication, defaults: Collection[UUID]) -> PublicationView:
    """A publication as it is answered."""
    columns = {name: getattr(row, name) for name in PublicationView.model_fields if hasattr(row, name)}
    return PublicationView(
        **columns,
        platform_id=row.node_platform_id,
        triggered_by_worker_id=row.worker_id,
        stuck=advice(row),
        is_default=row.id in defaults,
        git_sha_short=row.git_sha and row.git_sha[:8],
        sha256_short=row.sha256 and row.sha256[:16],
    )
