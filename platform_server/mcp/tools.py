"""Each action as a tool: its schemas, its hints, and its answer, from which a secret is taken out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from mcp.types import CallToolResult, TextContent, Tool, ToolAnnotations
from pydantic import BaseModel, Field, create_model

from platform_server.actions import Action, Effect
from platform_server.api import PREFIX, View
from platform_server.errors import Refused
from platform_server.tables import SecretPickup


class ReadOnce(View):
    """Where the secret is read: once, before it expires, with a token of the same user that holds
    system.secrets.read. Either way does.
    """

    secret_id: UUID
    expires_at: datetime
    command: Annotated[str, Field(description="with the token in DISK_IMAGE_PLATFORM_TOKEN")]
    url: Annotated[str, Field(description="POST, with Authorization: Bearer TOKEN")]


@dataclass(frozen=True, slots=True)
class Reading:
    """How secrets of this server are read: the options of `disk-image platform secret`, and its root URL."""

    options: Sequence[str]
    url: str

    def of(self, row: SecretPickup) -> ReadOnce:
        """Where one is read."""
        return ReadOnce(
            secret_id=row.id,
            expires_at=row.expires_at,
            command=shlex.join(("disk-image", "platform", "secret", str(row.id), *self.options)),
            url=f"{self.url}{PREFIX}/secrets/{row.id}",
        )


def tool(action: Action) -> Tool:
    """The tool of an action."""
    effect = action.effect
    return Tool(
        name=action.name,
        description=f"{action.summary} Needs the permission {action.permission}.",
        input_schema=action.params.model_json_schema(),
        output_schema=_result(action).model_json_schema(mode="serialization"),
        annotations=ToolAnnotations(
            read_only_hint=effect is Effect.READS,
            destructive_hint=effect in (Effect.SETS, Effect.CHANGES),
            idempotent_hint=effect in (Effect.READS, Effect.SETS),
            open_world_hint=False,
        ),
    )


def answered(action: Action, answer: BaseModel, read_once: ReadOnce | None = None) -> CallToolResult:
    """An answer as a result. With `read_once`, what it says stands in the place of the secret."""
    content = answer.model_dump(mode="json")
    if action.secret is not None:
        content["read_secret_once"] = None
    if action.secret is not None and read_once is not None:
        content[action.secret.field] = None
        content["note"] = (
            f"the {action.secret.field} is not in this answer: read_secret_once says how to read it, once"
        )
        content["read_secret_once"] = read_once.model_dump(mode="json")
    return CallToolResult(
        content=[TextContent(type="text", text=json.dumps(content, ensure_ascii=False))],
        structured_content=content,
    )


def refused(error: Refused) -> CallToolResult:
    """What was not carried out: the two lines that REST has as `error` and `hint`."""
    return CallToolResult(
        content=[TextContent(type="text", text=f"{error.what}\n{error.hint}")], is_error=True
    )


def _result(action: Action) -> type[BaseModel]:
    """The model of an action's answer over MCP, where a secret may be null."""
    if action.secret is None:
        return action.result
    fields: Mapping[str, Any] = {
        action.secret.field: (str | None, ...),
        "read_secret_once": (ReadOnce | None, ...),
    }
    return create_model(action.result.__name__, __base__=action.result, **fields)
