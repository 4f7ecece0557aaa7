"""`node_platforms/:id/disk_image_publications`: what was published for a platform, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query

from platform_server import node_platforms, publications
from platform_server.api import Meta, Served, Success, View, Window, errors, page, requires
from platform_server.permissions import Caller, Permission
from platform_server.publication_view import PublicationView, view
from platform_server.states import Status
from platform_server.tables import Publication

router = APIRouter(prefix="/node_platforms/{platform_id}", tags=["publications"])

_Read = Annotated[Caller, Depends(requires(Permission.PLATFORMS_READ))]


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
