"""`node_platforms`: kinds of nodes and the policy by which images are taken for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import Field
from sqlalchemy.orm import Session

from platform_server import node_platforms, publications
from platform_server.api import Body, Meta, Paged, Served, Success, View, errors, page, requires
from platform_server.permissions import Caller, Permission
from platform_server.tables import NodePlatform

router = APIRouter(prefix="/node_platforms", tags=["node platforms"])

_Read = Annotated[Caller, Depends(requires(Permission.PLATFORMS_READ))]
_Create = Annotated[Caller, Depends(requires(Permission.PLATFORMS_CREATE))]
_Update = Annotated[Caller, Depends(requires(Permission.PLATFORMS_UPDATE))]
_Delete = Annotated[Caller, Depends(requires(Permission.PLATFORMS_DELETE))]


class NodePlatformView(View):
    """A node platform; `default_publication_id` is what new nodes boot."""

    id: UUID
    account_id: UUID
    name: str
    description: str | None
    arch: str
    cosign_identity_regexp: str | None
    cosign_issuer_regexp: str | None
    trusted_registries: Sequence[str]
    disk_image_retention_count: int
    disk_image_oci_ref: str | None
    disk_image_publication_status: str
    disk_image_publication_error: str | None
    default_publication_id: UUID | None
    created_at: datetime
    updated_at: datetime


class PlatformFields(Body):
    """What a platform is made or changed with; fields that are not given stay as they are."""

    name: str | None = None
    description: str | None = None
    arch: str | None = None
    cosign_identity_regexp: str | None = None
    cosign_issuer_regexp: str | None = None
    trusted_registries: Annotated[list[str], Field(max_length=50)] | None = None
    disk_image_retention_count: int | None = None

    def given(self) -> dict[str, Any]:
        """Those that are there; null can take away a text, and leaves anything else as it is."""
        texts = {"description", "cosign_identity_regexp", "cosign_issuer_regexp"}
        return {
            field: value
            for field, value in self.model_dump(exclude_unset=True).items()
            if value is not None or field in texts
        }


class PlatformBody(Body):
    """The reference wraps the fields once."""

    node_platform: PlatformFields


class PlatformData(View):
    """One platform, and its id once more."""

    id: UUID
    node_platform: NodePlatformView


class PlatformsData(View):
    """A page of platforms."""

    node_platforms: Sequence[NodePlatformView]
    meta: Meta


@router.get("", responses=errors(401, 403))
async def index(caller: _Read, platform: Served, window: Paged) -> Success[PlatformsData]:
    """The account's platforms, the newest first."""

    def read(session: Session) -> tuple[Sequence[NodePlatformView], Meta]:
        rows, meta = page(node_platforms.listing(session, caller, window.limit + 1, window.before), window)
        return [view(session, row) for row in rows], meta

    views, meta = await platform.database.read(read)
    return Success(data=PlatformsData(node_platforms=views, meta=meta))


@router.post("", status_code=201, responses=errors(401, 403))
async def create(caller: _Create, platform: Served, body: PlatformBody) -> Success[PlatformData]:
    """Make a platform; its policy needs the permission system.platforms.manage_disk_image_policy."""
    fields = body.node_platform.given()
    return _one(
        await platform.database.write(
            lambda on: view(on, node_platforms.create(on, caller, fields, platform.clock()))
        )
    )


@router.get("/{platform_id}", responses=errors(401, 403, 404))
async def show(caller: _Read, platform: Served, platform_id: UUID) -> Success[PlatformData]:
    """One platform."""
    return _one(
        await platform.database.read(lambda on: view(on, node_platforms.get(on, caller, platform_id)))
    )


@router.patch("/{platform_id}", responses=errors(401, 403, 404, 409))
async def update(
    caller: _Update, platform: Served, platform_id: UUID, body: PlatformBody
) -> Success[PlatformData]:
    """Change a platform; its policy needs the permission system.platforms.manage_disk_image_policy."""
    fields = body.node_platform.given()
    return _one(
        await platform.database.write(
            lambda on: view(on, node_platforms.update(on, caller, platform_id, fields, platform.clock()))
        )
    )


@router.delete("/{platform_id}", responses=errors(401, 403, 404, 409))
async def delete(caller: _Delete, platform: Served, platform_id: UUID) -> Success[dict[str, bool]]:
    """Delete a platform that never had a publication."""
    await platform.database.write(lambda on: node_platforms.delete(on, caller, platform_id))
    return Success(data={"deleted": True})


def view(session: Session, row: NodePlatform) -> NodePlatformView:
    """A platform as it is answered."""
    shown = asdict(publications.newest(session, row.id))
    for name in NodePlatformView.model_fields.keys() - shown.keys():
        shown[name] = getattr(row, name)
    return NodePlatformView(**shown)


def _one(view: NodePlatformView) -> Success[PlatformData]:
    return Success(data=PlatformData(id=view.id, node_platform=view))
