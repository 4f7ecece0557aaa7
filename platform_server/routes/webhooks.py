"""`disk_image_webhooks`: where pipelines report images, managed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import Field

from platform_server import webhooks
from platform_server.api import Body, Meta, Paged, Served, Success, View, errors, page, requires
from platform_server.permissions import Caller, Permission
from platform_server.state_folder import Platform
from platform_server.tables import Webhook, WebhookStatus

router = APIRouter(prefix="/disk_image_webhooks", tags=["webhooks"])

PATH = "/api/v1/system/webhooks/disk_image/built"
_NOTE = "the secret is shown this once: keep it where the pipeline's secrets are"

_Read = Annotated[Caller, Depends(requires(Permission.WEBHOOKS_READ))]
_Create = Annotated[Caller, Depends(requires(Permission.WEBHOOKS_CREATE))]
_Delete = Annotated[Caller, Depends(requires(Permission.WEBHOOKS_DELETE))]
_Rotate = Annotated[Caller, Depends(requires(Permission.WEBHOOKS_ROTATE))]


class WebhookView(View):
    """A webhook without its secret, of which `secret_preview` is the start: what all have in common, and two
    random characters of 43.
    """

    id: UUID
    account_id: UUID
    label: str
    status: WebhookStatus
    secret_preview: str
    plain_signatures: bool
    received_count: int
    last_received_at: datetime | None
    last_rotated_at: datetime | None
    previous_until: datetime | None
    created_by_id: UUID | None
    created_at: datetime
    updated_at: datetime


class WebhookLabel(Body):
    """What a webhook is called."""

    label: str


class WebhookChange(Body):
    """What can be changed; what is not given stays."""

    status: Literal["active", "disabled"] | None = None
    plain_signatures: bool | None = None


class Rotation(Body):
    """For how long the secret before still counts (an hour unless said otherwise)."""

    overlap_seconds: Annotated[int, Field(ge=0)] | None = None


class WebhookData(View):
    """One webhook."""

    disk_image_webhook: WebhookView


class WebhooksData(View):
    """A page of webhooks."""

    disk_image_webhooks: Sequence[WebhookView]
    meta: Meta


class WebhookSecret(View):
    """A webhook and its secret, the only time that it is shown."""

    webhook_id: UUID
    label: str
    webhook_url: str
    webhook_secret: str
    note: str
    disk_image_webhook: WebhookView


@router.get("", responses=errors(401, 403))
async def index(caller: _Read, platform: Served, window: Paged) -> Success[WebhooksData]:
    """The account's webhooks, the newest first."""
    found = await platform.database.read(
        lambda on: webhooks.listing(on, caller, window.limit + 1, window.before)
    )
    rows, meta = page(found, window)
    views = [WebhookView.model_validate(row) for row in rows]
    return Success(data=WebhooksData(disk_image_webhooks=views, meta=meta))


@router.post("", status_code=201, responses=errors(401, 403))
async def create(caller: _Create, platform: Served, body: WebhookLabel) -> Success[WebhookSecret]:
    """Make a webhook."""
    row, secret = await platform.database.write(
        lambda on: webhooks.create(on, caller, platform.sealer, body.label, platform.clock())
    )
    return Success(data=with_secret(platform, row, secret))


@router.get("/{webhook_id}", responses=errors(401, 403, 404))
async def show(caller: _Read, platform: Served, webhook_id: UUID) -> Success[WebhookData]:
    """One webhook."""
    return _one(await platform.database.read(lambda on: webhooks.get(on, caller, webhook_id)))


@router.patch("/{webhook_id}", responses=errors(401, 403, 404, 409))
async def change(
    caller: _Delete, platform: Served, webhook_id: UUID, body: WebhookChange
) -> Success[WebhookData]:
    """Disable a webhook or enable it again; say whether it takes plain signatures."""
    status = None if body.status is None else WebhookStatus(body.status)
    return _one(
        await platform.database.write(
            lambda on: webhooks.change(
                on,
                caller,
                webhook_id,
                platform.clock(),
                status=status,
                plain_signatures=body.plain_signatures,
            )
        )
    )


@router.delete("/{webhook_id}", responses=errors(401, 403, 404, 409))
async def revoke(caller: _Delete, platform: Served, webhook_id: UUID) -> Success[WebhookData]:
    """Revoke a webhook, for good."""
    return _one(
        await platform.database.write(lambda on: webhooks.revoke(on, caller, webhook_id, platform.clock()))
    )


@router.post("/{webhook_id}/rotate_secret", responses=errors(401, 403, 404, 409))
async def rotate(
    caller: _Rotate, platform: Served, webhook_id: UUID, body: Rotation | None = None
) -> Success[WebhookSecret]:
    """Give a webhook a new secret; for a while the one before counts too."""
    given = body.overlap_seconds if body is not None else None
    # what is too long is refused in `rotate`; what no timedelta can hold, here
    seconds = None if given is None else min(given, 10**9)
    overlap = platform.settings.schedule.rotation_overlap if seconds is None else timedelta(seconds=seconds)
    row, secret = await platform.database.write(
        lambda on: webhooks.rotate(on, caller, platform.sealer, webhook_id, overlap, platform.clock())
    )
    return Success(data=with_secret(platform, row, secret))


def webhook_url(platform: Platform, webhook_id: UUID) -> str:
    """Where a pipeline posts to."""
    return f"{platform.settings.public_url}{PATH}/{webhook_id}"


def _one(row: Webhook) -> Success[WebhookData]:
    return Success(data=WebhookData(disk_image_webhook=WebhookView.model_validate(row)))


def with_secret(platform: Platform, row: Webhook, secret: str) -> WebhookSecret:
    """A webhook with its secret, as it is answered when that is made."""
    return WebhookSecret(
        webhook_id=row.id,
        label=row.label,
        webhook_url=webhook_url(platform, row.id),
        webhook_secret=secret,
        note=_NOTE,
        disk_image_webhook=WebhookView.model_validate(row),
    )
