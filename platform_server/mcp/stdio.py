"""MCP over standard input and output, for the program that started this one."""

from __future__ import annotations

from mcp.server.stdio import stdio_server

from platform_server.mcp.server import Context, mcp_server, require_user
from platform_server.mcp.tools import Reading
from platform_server.permissions import Caller
from platform_server.state_folder import Platform
from platform_server.tokens import authenticate


async def serve(platform: Platform, token: str, reading: Reading | None) -> None:
    """Serve the token's user until standard input ends. Raises Refused when the token is none of a user."""

    async def who(context: Context | None = None) -> Caller:
        return require_user(await platform.database.read(lambda on: authenticate(on, token)))

    await who()
    server = mcp_server(platform, who, reading)
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())
