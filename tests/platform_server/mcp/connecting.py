"""MCP clients of the SDK, over HTTP and over standard input and output, with every byte recorded."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from tests.platform_server.made import Made

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, "-m", "pipelines", "platform")


@dataclass
class Wire:
    """What went over the connection, both ways."""

    parts: list[bytes] = field(default_factory=list)

    @property
    def bytes(self) -> bytes:
        return b"\n".join(self.parts)


@asynccontextmanager
async def over_http(
    url: str, token: str | None, wire: Wire | None = None, *, mode: Any = "auto"
) -> AsyncIterator[Client]:
    """The client of a platform that serves at `url`."""

    async def note_request(request: httpx2.Request) -> None:
        assert wire is not None
        wire.parts.append(await request.aread())

    async def note_answer(answer: httpx2.Response) -> None:
        assert wire is not None
        wire.parts += [bytes(each) for pair in answer.headers.raw for each in pair]
        wire.parts.append(await answer.aread())

    hooks: Any = {} if wire is None else {"request": [note_request], "response": [note_answer]}
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=60, event_hooks=hooks) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


@asynccontextmanager
async def over_stdio(
    made: Made,
    *arguments: str,
    errors: TextIO,
    token: str | None = None,
    wire: Path | None = None,
    mode: Any = "auto",
) -> AsyncIterator[Client]:
    """The client of `disk-image platform mcp`; what goes over the pipes goes to files in `wire`."""
    command = [*COMMAND, "mcp", *made.argv, *arguments]
    if wire is not None:
        tee = f'tee {wire}/sent | "$@" | tee {wire}/answered'
        command = ["sh", "-c", tee, "sh", *command]
    server = StdioServerParameters(
        command=command[0],
        args=command[1:],
        cwd=ROOT,
        env={**os.environ, "DISK_IMAGE_PLATFORM_TOKEN": token or made.admin_token},
    )
    async with Client(stdio_client(server, errlog=errors), mode=mode) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured content of a call that is no error."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    content = result.structured_content
    assert isinstance(content, dict)
    return content


async def refusal(client: Client, tool: str, **arguments: Any) -> str:
    """The text of a call that is an error."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    (content,) = result.content
    assert content.type == "text"
    return content.text
