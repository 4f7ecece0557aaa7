"""`node_platforms/:id/disk_image_publications`: what was published for a platform, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query

from platform_server import node_platforms, publications
from platform_server.api import Meta, Served, Success, View, Window, errors, page, requires
from platform_server.permissions import Caller, Permission
from platform_server.states import Status
from platform_server.tables import Publication

router = APIRouter(prefix="/node_platforms/{platform_id}", tags=["publications"])

_Read = Annotated[Caller, Depends(requires(Permission.PLATFORMS_READ))]


class PublicationView(View):
    """A publication. Until it is published, sha256, size_bytes, git_sha and oci_digest are what its sender
    said; from then on what was found. `duplicate_of_id` is the publication that has the same image.
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


class PublicationData(View):
    """One publication."""

    disk_image_publication: PublicationView


class PublicationsData(View):
    """A page of publications."""

    disk_image_publications: Sequence[PublicationView]
    meta: Meta


class PublicationWindow(Window):
    """Which publications."""

    status: Status | None = None


@router.get("/disk_image_publications", responses=errors(401, 403, 404))
async def index(
    caller: _Read, platform: Served, platform_id: UUID, window: Annotated[PublicationWindow, Query()]
) -> Success[PublicationsData]:
    """A platform's publications, the newest first."""

    def read(session: Any) -> tuple[Sequence[Publication], Collection[UUID]]:
        node_platforms.get(session, caller, platform_id)
        rows = publications.listing(
            session,
            caller,
            window.limit + 1,
            platform_id=platform_id,
            status=window.status,
            before=window.before,
        )
        return rows, publications.defaults(session, rows)

    rows, defaults = await platform.database.read(read)
    shown, meta = page(rows, window)
    views = [view(row, defaults) for row in shown]
    return Success(data=PublicationsData(disk_image_publications=views, meta=meta))


@router.get("/disk_image_publications/{publication_id}", responses=errors(401, 403, 404))
async def show(
    caller: _Read, platform: Served, platform_id: UUID, publication_id: UUID
) -> Success[PublicationData]:
    """One publication."""

    def read(session: Any) -> tuple[Publication, Collection[UUID]]:
        row = publications.get(session, caller, publication_id, platform_id)
        return row, publications.defaults(session, [row])

    row, defaults = await platform.database.read(read)
    return Success(data=PublicationData(disk_image_publication=view(row, defaults)))


def view(row: Publication, defaults: Collection[UUID]) -> PublicationView:
    """A publication as it is answered."""
    columns = {name: getattr(row, name) for name in PublicationView.model_fields if hasattr(row, name)}
    return PublicationView(
        **columns,
        platform_id=row.node_platform_id,
        triggered_by_worker_id=row.worker_id,
        is_default=row.id in defaults,
        git_sha_short=row.git_sha and row.git_sha[:8],
        sha256_short=row.sha256 and row.sha256[:16],
    )
