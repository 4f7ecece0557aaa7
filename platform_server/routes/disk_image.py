"""`node_platforms/:id/disk_image`: what new nodes of a platform boot, and where to get it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from fastapi.responses import FileResponse
from sqlalchemy.orm import Session

from platform_server import node_platforms, publications
from platform_server.api import Served, Success, View, errors, requires
from platform_server.errors import Missing, missing
from platform_server.events import Kind, Told, emit
from platform_server.permissions import Caller, Permission
from platform_server.states import KEPT
from platform_server.tables import NodePlatform, Publication
from platform_server.upload_files import PATH, UploadFiles

_Read = Annotated[Caller, Depends(requires(Permission.PLATFORMS_READ))]
# As long as the reference's.
_GOOD_FOR = timedelta(hours=1)


class DiskImage(View):
    """A platform's default image: in a registry at `oci_ref`, or as an archive at `url`, which is good until
    `expires_at`. sha256 and size are the archive's where there is one, else the image manifest's and all of
    the image's.
    """

    publication_id: UUID
    oci_ref: str | None
    oci_digest: str | None
    url: str | None
    expires_at: datetime | None
    sha256: str | None
    size_bytes: int | None
    built_at: datetime | None
    filename: str


def token_routes(files: UploadFiles) -> APIRouter:
    """The route that a token opens."""
    routes = APIRouter(prefix="/node_platforms/{platform_id}", tags=["publications"])

    @routes.get("/disk_image", responses=errors(401, 403, 404))
    async def show(caller: _Read, platform: Served, platform_id: UUID) -> Success[DiskImage]:
        """The image that new nodes boot."""
        at = platform.clock()

        def read(session: Session) -> tuple[NodePlatform, Publication]:
            node_platform = node_platforms.get(session, caller, platform_id)
            if node_platform.default_publication_id is None:
                raise Missing(
                    f"No disk image built for node platform {node_platform.name}",
                    "publish one, or set a default",
                )
            row = session.get_one(Publication, node_platform.default_publication_id)
            payload = {
                "publication_id": str(row.id),
                "node_platform_id": str(node_platform.id),
                "platform_id": str(node_platform.id),
                "platform_name": node_platform.name,
                "by_user_id": None if caller.user_id is None else str(caller.user_id),
                "sha256": row.sha256,
            }
            emit(session, row.account_id, Kind.DOWNLOADED, payload, Told("operator", row.correlation_id), at)
            return node_platform, row

        node_platform, row = await platform.database.write(read)
        uploaded = row.oci_ref is None
        until = at + _GOOD_FOR
        return Success(
            data=DiskImage(
                publication_id=row.id,
                oci_ref=publications.pinned(row),
                oci_digest=row.oci_digest,
                url=f"{platform.settings.public_url}{PATH}/{files.signed('GET', row.id, until)}"
                if uploaded
                else None,
                expires_at=until if uploaded else None,
                sha256=row.upload_sha256 if uploaded else row.sha256,
                size_bytes=row.upload_size_bytes if uploaded else row.size_bytes,
                built_at=row.published_at,
                filename=f"powernode-{node_platform.name}.{'tar' if uploaded else 'img'}",
            )
        )

    return routes


def get_route(files: UploadFiles) -> APIRouter:
    """The route for the archive: the URL is all the permission that it needs."""
    routes = APIRouter(prefix="/uploads", tags=["publications"])

    @routes.get(
        "/{publication_id}",
        response_class=FileResponse,
        responses={
            200: {"content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}},
            **errors(403, 404),
        },
    )
    async def get(
        platform: Served,
        publication_id: UUID,
        expires: Annotated[int, Query(ge=0, le=2**40)],
        signature: Annotated[str, Query(max_length=64)],
    ) -> FileResponse:
        """An uploaded image's archive."""
        files.check("GET", publication_id, expires, signature)
        row = await platform.database.read(lambda on: on.get(Publication, publication_id))
        path = files.path(publication_id)
        if row is None or row.status not in KEPT or not path.is_file():
            raise missing("uploaded image", publication_id)
        return FileResponse(path, media_type="application/x-tar", filename=f"{publication_id}.tar")

    return routes
