"""`actions/NAME`: the operators' actions, each with its parameters as a JSON object."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from platform_server.action_table import ACTIONS
from platform_server.actions import Action
from platform_server.api import Served, Success, errors, requires
from platform_server.permissions import Caller

router = APIRouter(prefix="/actions", tags=["actions"])


def _endpoint(action: Action) -> Callable[..., Awaitable[Any]]:
    async def endpoint(platform: Any, caller: Any, body: Any) -> Any:
        return Success(data=await action.run(platform, caller, body))

    # FastAPI reads the annotations, which differ from action to action.
    endpoint.__annotations__ = {
        "platform": Served,
        "caller": Annotated[Caller, Depends(requires(action.permission))],
        "body": action.params,
    }
    endpoint.__doc__ = action.summary
    return endpoint


for _action in ACTIONS.values():
    router.add_api_route(
        f"/{_action.name}",
        _endpoint(_action),
        methods=["POST"],
        name=_action.name,
        response_model=Success[_action.result],  # type: ignore[name-defined]
        responses=errors(401, 403, 404, 409),
    )
