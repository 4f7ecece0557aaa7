"""What the routes share: who asks, the envelope of every answer, and pages of a list.

Answers are `{"success": true, "data": …}`; errors `{"success": false, "error": …, "hint": …}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError
from structlog.contextvars import bind_contextvars

from platform_server.errors import TooLarge, TooSlow
from platform_server.permissions import Caller, Permission
from platform_server.state_folder import Platform
from platform_server.tokens import authenticate, seen

# Where the API is.
PREFIX = "/api/v1/system"

# JSON can name characters that are none in UTF-8, and PostgreSQL's texts have no NUL.
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")

_Data = TypeVar("_Data")

_bearer = HTTPBearer(auto_error=False, description="a token of `disk-image platform token`")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
_worker = APIKeyHeader(name="X-Worker-Token", auto_error=False, description="a CI worker's token")
WorkerToken = Annotated[str | None, Depends(_worker)]


class View(BaseModel):
    """A row as it is answered."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


class Asked(BaseModel):
    """What a request asks for. Its texts are ones that every database keeps."""

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: object) -> object:
        if isinstance(value, str) and _NO_TEXT.search(value):
            raise PydanticCustomError("text", "Input should be Unicode without NUL and lone surrogates")
        return value


class Body(Asked):
    """A request's body: nothing in it is passed over."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Success(BaseModel, Generic[_Data]):
    """The envelope of an answer."""

    success: Literal[True] = True
    data: _Data


class Failure(BaseModel):
    """The envelope of an error: what failed, and what to do."""

    success: Literal[False] = False
    error: str
    hint: str


class Meta(BaseModel):
    """A page: how many rows it has, and the `before` of the next one, null on the last."""

    count: int
    next: UUID | None


_FAILURE = {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route documents, besides 422."""
    return {status: {"model": Failure} for status in (*statuses, 422)}


def the_platform(request: Request) -> Platform:
    """The platform that is served."""
    platform: Platform = request.app.state.platform
    return platform


Served = Annotated[Platform, Depends(the_platform)]


def requires(permission: Permission) -> Callable[..., Any]:
    """A dependency: the caller, who holds the permission. A worker's token may also be in X-Worker-Token."""

    async def caller(credentials: Credentials, worker_token: WorkerToken, platform: Served) -> Caller:
        token = credentials.credentials if credentials is not None else worker_token
        found = await platform.database.read(lambda session: authenticate(session, token))
        bind_contextvars(account=str(found.account_id), caller=found.name)
        found.require(permission)
        if found.worker_id is not None:
            await platform.database.write(lambda session: seen(session, found, platform.clock()))
        return found

    caller.permission = permission  # type: ignore[attr-defined]
    return caller


def documented(router: APIRouter) -> APIRouter:
    """The router, with what its routes have in common in their OpenAPI: the permission that each asks for,
    as `x-permission`, and what a body is answered that is too large or too slow.
    """
    for route in router.routes:
        assert isinstance(route, APIRoute)
        asked = [getattr(each.call, "permission", None) for each in route.dependant.dependencies]
        (permission,) = [each for each in asked if each is not None]
        route.openapi_extra = {"x-permission": permission}
        if route.body_field is not None:
            route.openapi_extra["responses"] = {
                str(error.status): {"description": error.__doc__, "content": _FAILURE}
                for error in (TooSlow, TooLarge)
            }
    return router


class Window(Asked):
    """Which part of a list, the newest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(ge=1, le=200, description="how many rows")] = 50
    before: Annotated[UUID | None, Field(description="only rows older than this one")] = None


Paged = Annotated[Window, Query()]


def page(rows: Sequence[Any], window: Window) -> tuple[Sequence[Any], Meta]:
    """The rows of a page out of one more than its limit, and what its envelope says."""
    shown = rows[: window.limit]
    more = len(rows) > window.limit
    return shown, Meta(count=len(shown), next=shown[-1].id if more else None)
