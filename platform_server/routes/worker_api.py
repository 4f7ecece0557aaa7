"""`worker_api/disk_image_publications`: how a CI worker uploads an image. The place that `initiate` names is
its permission; the route for the bytes takes no token.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from structlog.contextvars import bind_contextvars

from platform_server import reverify, uploads
from platform_server.api import Body, Served, Success, View, errors, requires
from platform_server.payload import LARGEST, GitSha, Hex, Line, Name
from platform_server.permissions import Caller, Permission
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Publication
from platform_server.upload_files import PATH, UploadFiles

_Publish = Annotated[Caller, Depends(requires(Permission.PUBLISH_DISK_IMAGE))]


class Initiate(Body):
    """What is to be uploaded; sha256 and size are the file's, an OCI layout as a tar archive."""

    platform_name: Name
    sha256: Hex
    size_bytes: Annotated[int, Field(gt=0, le=LARGEST)]
    git_sha: GitSha
    arch: Literal["amd64", "arm64"] | None = None
    firmware_ref: Line | None = None


class Finalize(Body):
    """What was uploaded."""

    publication_id: Annotated[UUID, Field(strict=False)]
    sha256_verify: Hex


class Process(Body):
    """What to verify once more."""

    publication_id: Annotated[UUID, Field(strict=False)]


class Processed(View):
    """Its state: a verdict comes later."""

    publication_id: UUID
    platform_id: UUID
    git_sha: str | None
    publication_status: Status
    idempotent_hit: bool


class Initiated(View):
    """Where to put the bytes; nowhere when there is nothing to upload."""

    publication_id: UUID
    platform_id: UUID
    publication_status: Status
    idempotent_hit: bool
    file_object_id: UUID | None
    signed_upload_url: str | None
    upload_expires_at: datetime | None
    note: str


class Finalized(View):
    """What became of it so far."""

    publication_id: UUID
    platform_id: UUID
    file_object_id: UUID
    git_sha: str | None
    publication_status: Status


class Stored(View):
    """The bytes are there."""

    publication_id: UUID
    sha256: str | None
    size_bytes: int | None


def _noted(row: Publication) -> Publication:
    """The row, to which this request's line in the log belongs."""
    bind_contextvars(publication_id=str(row.id), correlation_id=row.correlation_id)
    return row


def token_routes(platform: Platform, files: UploadFiles) -> APIRouter:
    """The routes that a worker's token opens."""
    routes = APIRouter(prefix="/worker_api/disk_image_publications", tags=["worker API"])

    @routes.post("/initiate", responses=errors(401, 403, 404, 409, 413, 429))
    async def initiate(caller: _Publish, served: Served, body: Initiate) -> Success[Initiated]:
        """Announce an upload; asked again, the same one goes on."""
        offer = uploads.Offer(**body.model_dump())
        begun = await served.database.write(
            lambda on: uploads.initiate(on, caller, offer, files.space(), served.clock())
        )
        row = _noted(begun.row)
        url, until, note = None, None, "the platform has it already"
        if begun.wanted:
            place, until = files.place(row)
            url = f"{platform.settings.public_url}{PATH}/{place}"
            note = "PUT the file to signed_upload_url, then finalize"
        return Success(
            data=Initiated(
                publication_id=row.id,
                platform_id=row.node_platform_id,
                publication_status=row.status,
                idempotent_hit=not begun.wanted,
                file_object_id=row.id if begun.wanted else None,
                signed_upload_url=url,
                upload_expires_at=until,
                note=note,
            )
        )

    @routes.post("/finalize", responses=errors(401, 403, 404, 409))
    async def finalize(caller: _Publish, served: Served, body: Finalize) -> Success[Finalized]:
        """Have the uploaded image verified."""
        row = _noted(
            await served.database.write(
                lambda on: uploads.finalize(
                    on, caller, body.publication_id, body.sha256_verify, files.arrived, served.clock()
                )
            )
        )
        return Success(
            data=Finalized(
                publication_id=row.id,
                platform_id=row.node_platform_id,
                file_object_id=row.id,
                git_sha=row.git_sha,
                publication_status=row.status,
            )
        )

    @routes.post("/process", responses=errors(401, 403, 404, 409))
    async def process(caller: _Publish, served: Served, body: Process) -> Success[Processed]:
        """Have a failed publication verified once more."""
        row = _noted(
            await served.database.write(
                lambda on: reverify.process(on, caller, body.publication_id, served.clock())
            )
        )
        return Success(
            data=Processed(
                publication_id=row.id,
                platform_id=row.node_platform_id,
                git_sha=row.git_sha,
                publication_status=row.status,
                idempotent_hit=row.status is Status.PUBLISHED,
            )
        )

    return routes


def put_route(files: UploadFiles) -> APIRouter:
    """The route for the bytes."""
    routes = APIRouter(prefix="/uploads", tags=["worker API"])
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

    @routes.put(
        "/{publication_id}",
        responses=errors(403, 404, 408, 409, 413, 429),
        openapi_extra={"requestBody": {"required": True, "content": binary}},
    )
    async def put(
        request: Request,
        publication_id: UUID,
        expires: Annotated[int, Query(ge=0, le=2**40)],
        signature: Annotated[str, Query(max_length=64)],
    ) -> Success[Stored]:
        """Put the bytes of an upload: all of them, in one request."""
        said = request.headers.get("content-length", "")
        length = int(said) if said.isdecimal() and len(said) < 20 else None
        row = _noted(await files.take(publication_id, expires, signature, length, request.stream()))
        return Success(
            data=Stored(publication_id=row.id, sha256=row.upload_sha256, size_bytes=row.upload_size_bytes)
        )

    return routes
