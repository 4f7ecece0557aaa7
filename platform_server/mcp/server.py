"""The MCP server `platform`: it lists the tools that the caller may use, and calls them.

It knows the caller anew for each request, so a token that is revoked ends at once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, TypeAlias

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
)
from pydantic import BaseModel
from sqlalchemy.orm import Session

from platform_server import secret_pickups
from platform_server.action_table import ACTIONS, read_params
from platform_server.actions import Action, Secret
from platform_server.errors import Forbidden, Refused, shown
from platform_server.mcp.tools import Reading, answered, refused, tool
from platform_server.permissions import Caller
from platform_server.state_folder import Platform
from platform_server.tables import SecretPickup

log = logging.getLogger(__name__)

NAME = "platform"
_INSTRUCTIONS = (
    "Operates a platform for disk images: webhooks through which pipelines report images, publications of "
    "verified images, which of them new nodes boot, and how many are kept. Ids are UUIDs out of earlier "
    "answers. Secrets are not in answers: show the user read_secret_once, and don't read it for them."
)
_UNFORESEEN = Refused(
    "the platform failed to answer", "its log has the reason; send the request again later"
)
Context: TypeAlias = ServerRequestContext[Any, Any]


def require_user(caller: Caller) -> Caller:
    """The caller, who operates. Raises Forbidden for a worker, whose token is for pipelines."""
    if caller.user_id is None:
        raise Forbidden(
            f"{caller.name} is a worker: expected a user's token", "disk-image platform token makes one"
        )
    return caller


def mcp_server(
    platform: Platform, who: Callable[[Context], Awaitable[Caller]], reading: Reading | None
) -> Server[Any]:
    """The server. `who` finds a request's caller, or raises Refused. Without `reading` secrets stand in
    answers; else these say how they are read.
    """

    async def list_tools(context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        try:
            caller = await who(context)
        except Refused as error:
            raise MCPError(INVALID_REQUEST, f"{error.what}\n{error.hint}") from None
        return ListToolsResult(
            tools=[_TOOLS[name] for name, action in ACTIONS.items() if caller.may(action.permission)]
        )

    async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
        action = ACTIONS.get(params.name)
        if action is None:
            raise MCPError(INVALID_PARAMS, f"no tool {shown(params.name)}: tools/list names them")
        user, status = "", 200
        try:
            caller = await who(context)
            user = caller.name
            caller.require(action.permission)
            asked = read_params(action, params.arguments or {})
            if action.secret is not None and reading is not None:
                return await _kept(platform, caller, action, action.secret, asked, reading)
            return answered(action, await action.run(platform, caller, asked))
        except Refused as error:
            status = error.status
            return refused(error)
        except Exception:
            status = 500
            log.exception("the tool %s failed", action.name)
            return refused(_UNFORESEEN)
        finally:
            log.info("tool", extra={"tool": action.name, "user": user, "status": status})

    return Server(
        NAME,
        version=version("disk-image-ci"),
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        get_tool_input_schema=lambda name: _TOOLS[name].input_schema if name in _TOOLS else None,
    )


async def _kept(
    platform: Platform, caller: Caller, action: Action, secret: Secret, params: BaseModel, reading: Reading
) -> CallToolResult:
    """Run an action, and keep the secret that it makes for whoever reads it, in one transaction: there is no
    moment at which what was made is there and its secret is lost.
    """
    made_by = action.name, secret.field
    at, lifetime = platform.clock(), platform.settings.schedule.secret_pickup

    def make(session: Session) -> tuple[BaseModel, SecretPickup]:
        answer = secret.make(session, platform, caller, params)
        found: str = getattr(answer, secret.field)
        row = secret_pickups.keep(session, caller, platform.sealer, found, made_by, at, lifetime)
        return answer, row

    answer, row = await platform.database.write(make)
    return answered(action, answer, reading.of(row))


_TOOLS = {name: tool(action) for name, action in ACTIONS.items()}
