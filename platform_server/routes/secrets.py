"""`secrets`: what an action made for its caller alone, read once."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Response

from platform_server import secret_pickups
from platform_server.api import Served, Success, View, errors, requires
from platform_server.permissions import Caller, Permission

router = APIRouter(prefix="/secrets", tags=["secrets"])

_Read = Annotated[Caller, Depends(requires(Permission.SECRETS_READ))]


class SecretView(View):
    """A secret, and which action's answer it belongs to by which name."""

    id: UUID
    action: str
    field: str
    secret: str


@router.post("/{secret_id}", responses=errors(401, 403, 404, 409))
async def read(caller: _Read, platform: Served, secret_id: UUID, answer: Response) -> Success[SecretView]:
    """Read a secret that an action over MCP made: once, by the same user, before it expires."""
    row, secret = await platform.database.write(
        lambda on: secret_pickups.take(on, caller, platform.sealer, secret_id, platform.clock())
    )
    # RFC 9111, 5.2.2.5: nobody on the way keeps it either.
    answer.headers["Cache-Control"] = "no-store"
    return Success(data=SecretView(id=row.id, action=row.action, field=row.field, secret=secret))
