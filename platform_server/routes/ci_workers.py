"""`ci_workers`: machines that upload and publish, managed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import Field

from platform_server import workers
from platform_server.api import Body, Meta, Paged, Served, Success, View, errors, page, requires
from platform_server.permissions import Caller, Permission
from platform_server.tables import Worker, WorkerRole, WorkerStatus

router = APIRouter(prefix="/ci_workers", tags=["CI workers"])

_NOTE = "the token is shown this once: keep it as POWERNODE_CI_WORKER_TOKEN where the pipeline's secrets are"

_Read = Annotated[Caller, Depends(requires(Permission.CI_WORKERS_READ))]
_Create = Annotated[Caller, Depends(requires(Permission.CI_WORKERS_CREATE))]
_Delete = Annotated[Caller, Depends(requires(Permission.CI_WORKERS_DELETE))]
_Rotate = Annotated[Caller, Depends(requires(Permission.CI_WORKERS_ROTATE))]


class WorkerView(View):
    """A CI worker without its token."""

    id: UUID
    account_id: UUID
    name: str
    description: str | None
    status: WorkerStatus
    roles: Sequence[WorkerRole]
    last_seen_at: datetime | None
    created_at: datetime
    updated_at: datetime


class NewWorker(Body):
    """What a worker is called."""

    name: Annotated[str, Field(description="1 to 100 printable characters", examples=["runner-1"])]
    description: Annotated[str | None, Field(description="what it is for")] = None


class WorkerData(View):
    """One worker."""

    ci_worker: WorkerView


class WorkersData(View):
    """A page of workers."""

    ci_workers: Sequence[WorkerView]
    count: int
    meta: Meta


class WorkerToken(View):
    """A worker and its token, the only time that it is shown."""

    ci_worker: WorkerView
    token_plaintext: str
    note: str


class Revoked(View):
    """A worker that is no more."""

    revoked: bool
    worker_id: UUID
    ci_worker: WorkerView


@router.get("", responses=errors(401, 403))
async def index(caller: _Read, platform: Served, window: Paged) -> Success[WorkersData]:
    """The account's CI workers, the newest first."""
    found = await platform.database.read(
        lambda on: workers.listing(on, caller, window.limit + 1, window.before)
    )
    rows, meta = page(found, window)
    views = [view(row) for row in rows]
    return Success(data=WorkersData(ci_workers=views, count=len(views), meta=meta))


@router.post("", status_code=201, responses=errors(401, 403))
async def create(caller: _Create, platform: Served, body: NewWorker) -> Success[WorkerToken]:
    """Make a worker."""
    return Success(
        data=shown_once(
            *await platform.database.write(
                lambda on: workers.create(on, caller, body.name, body.description, platform.clock())
            )
        )
    )


@router.get("/{worker_id}", responses=errors(401, 403, 404))
async def show(caller: _Read, platform: Served, worker_id: UUID) -> Success[WorkerData]:
    """One worker."""
    row = await platform.database.read(lambda on: workers.get(on, caller, worker_id))
    return Success(data=WorkerData(ci_worker=view(row)))


@router.post("/{worker_id}/rotate_token", responses=errors(401, 403, 404, 409))
async def rotate(caller: _Rotate, platform: Served, worker_id: UUID) -> Success[WorkerToken]:
    """Give a worker a new token; the one before counts no more."""
    return Success(
        data=shown_once(
            *await platform.database.write(
                lambda on: workers.rotate(on, caller, worker_id, platform.clock())
            )
        )
    )


@router.delete("/{worker_id}", responses=errors(401, 403, 404))
async def terminate(caller: _Delete, platform: Served, worker_id: UUID) -> Success[Revoked]:
    """Revoke a worker, for good."""
    row = await platform.database.write(
        lambda on: workers.terminate(on, caller, worker_id, platform.clock())
    )
    return Success(data=Revoked(revoked=True, worker_id=row.id, ci_worker=view(row)))


def view(row: Worker) -> WorkerView:
    """A worker as it is answered."""
    columns = {name: getattr(row, name) for name in WorkerView.model_fields if name != "roles"}
    return WorkerView(**columns, roles=[row.role])


def shown_once(row: Worker, token: str) -> WorkerToken:
    """A worker with its token, as it is answered when it is made."""
    return WorkerToken(ci_worker=view(row), token_plaintext=token, note=_NOTE)
