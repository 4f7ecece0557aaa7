"""A published image's further life: made the default, rolled back to, swept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import Field

from platform_server import actions, sweeps
from platform_server.actions import DefaultSet, Rollback, RolledBack, SetDefault
from platform_server.api import Body, Served, Success, View, errors, requires
from platform_server.errors import Invalid
from platform_server.permissions import Caller, Permission
from platform_server.sweeps import Swept

router = APIRouter(tags=["publications"])


@router.post(
    "/node_platforms/{platform_id}/disk_image_publications/{publication_id}/set_default",
    responses=errors(401, 403, 404, 409),
)
async def set_default(
    caller: Annotated[Caller, Depends(requires(Permission.MODULES_UPDATE))],
    platform: Served,
    platform_id: UUID,
    publication_id: UUID,
) -> Success[DefaultSet]:
    """Have new nodes boot this publication."""
    params = SetDefault(publication_id=publication_id, node_platform_id=platform_id)
    return Success(data=await actions.set_default(platform, caller, params))


class RollbackTarget(Body):
    """Which publication; else the one published before the default."""

    publication_id: Annotated[UUID, Field(strict=False)] | None = None


@router.post("/node_platforms/{platform_id}/rollback_disk_image", responses=errors(401, 403, 404, 409))
async def rollback(
    caller: Annotated[Caller, Depends(requires(Permission.ROLLBACK_DISK_IMAGE))],
    platform: Served,
    platform_id: UUID,
    body: RollbackTarget | None = None,
) -> Success[RolledBack]:
    """Have new nodes boot an earlier image again, and retire the present one."""
    target = body.publication_id if body is not None else None
    params = Rollback(node_platform_id=platform_id, publication_id=target)
    return Success(data=await actions.rollback(platform, caller, params))


class SweepBody(Body):
    """What to sweep: one platform, or all of the account's. The grace can be longer than usual, never
    shorter.
    """

    platform_id: Annotated[UUID, Field(strict=False)] | None = None
    grace_days: Annotated[int, Field(ge=1, le=3650)] | None = None
    dry_run: bool = False


class SweptView(View):
    """How many publications were retired, retired because they made no progress, and purged; `blocked` are
    those whose image should be deleted and could not be.
    """

    retired: int
    stuck_retired: int
    purged: int
    blocked: int


class SweptPlatform(SweptView):
    """One platform's sweep."""

    platform_id: UUID
    dry_run: bool


class SweptAccount(View):
    """A sweep of every platform of the account."""

    account_id: UUID
    dry_run: bool
    per_platform: Mapping[UUID, SweptView]


@router.post("/worker_api/disk_image_publications/sweep_retention", responses=errors(401, 403, 404))
async def sweep_retention(
    caller: Annotated[Caller, Depends(requires(Permission.PUBLISH_DISK_IMAGE))],
    platform: Served,
    body: SweepBody,
) -> Success[SweptPlatform | SweptAccount]:
    """Retire and purge what need not be kept, now instead of with the daily sweep."""
    usual = platform.settings.schedule.grace
    grace = usual if body.grace_days is None else timedelta(days=body.grace_days)
    if grace < usual:
        raise Invalid(field="grace_days", value=body.grace_days, rule=f"at least {usual.days}")
    swept = await sweeps.sweep_account(platform, caller, body.platform_id, grace, dry_run=body.dry_run)
    if body.platform_id is not None:
        one = _view(swept[body.platform_id])
        return Success(
            data=SweptPlatform(**one.model_dump(), platform_id=body.platform_id, dry_run=body.dry_run)
        )
    views = {platform_id: _view(each) for platform_id, each in swept.items()}
    return Success(data=SweptAccount(account_id=caller.account_id, dry_run=body.dry_run, per_platform=views))


def _view(swept: Swept) -> SweptView:
    return SweptView(**asdict(swept))
