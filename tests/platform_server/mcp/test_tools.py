"""What the server lists: the tutorial's actions by their names, parameters and returns."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.types import Tool
from syrupy.assertion import SnapshotAssertion

from platform_server.action_table import ACTIONS
from platform_server.permissions import Permission
from tests.platform_server.mcp.conftest import Served
from tests.platform_server.mcp.connecting import over_http

TUTORIAL = tomllib.loads(Path(__file__).with_name("tutorial.toml").read_text())


def listed(served: Served, token: str, mode: str = "auto") -> dict[str, Tool]:
    """The tools as a client gets them."""

    async def ask() -> dict[str, Tool]:
        async with over_http(served.url, token, mode=mode) as client:
            assert client.server_info is not None
            assert client.server_info.name == "platform"
            return {tool.name: tool for tool in (await client.list_tools()).tools}

    return anyio.run(ask)


def _fields(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """An object's properties, or those of a list's rows."""
    while "$ref" in schema or schema.get("type") == "array":
        schema = schema["items"] if "items" in schema else whole["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    properties: dict[str, Any] = schema["properties"]
    return properties


def test_the_tools_are_those_of_the_tutorial(served: Served, subtests: pytest.Subtests) -> None:
    tools = listed(served, served.token)
    assert tools.keys() >= TUTORIAL.keys()
    for name, golden in TUTORIAL.items():
        with subtests.test(name):
            taken, given = tools[name].input_schema, tools[name].output_schema
            assert set(taken.get("required", ())) == set(golden["required"])
            assert set(taken["properties"]) == {*golden["required"], *golden["optional"]}
            assert taken["additionalProperties"] is False
            assert given is not None
            assert set(given["properties"]) >= set(golden["returns"])
            assert set(given["required"]) >= set(golden["returns"]) - _constants(given)
            for field, columns in golden.get("rows", {}).items():
                assert set(_fields(given["properties"][field], given)) >= set(columns)
            assert ACTIONS[name].permission == golden["permission"]
            assert str(golden["permission"]) in (tools[name].description or "")


def _constants(schema: dict[str, Any]) -> set[str]:
    """Fields that always say the same."""
    return {name for name, rule in schema["properties"].items() if "const" in rule}


def test_the_whole_list_is_as_reviewed(served: Served, snapshot: SnapshotAssertion) -> None:
    tools = listed(served, served.token)
    assert [
        json.loads(tool.model_dump_json(by_alias=True, exclude_none=True)) for tool in tools.values()
    ] == snapshot


def test_clients_of_the_older_protocol_get_the_same_list(served: Served) -> None:
    assert listed(served, served.token, "legacy") == listed(served, served.token)


def test_hints_say_what_a_tool_does(served: Served) -> None:
    hints = {name: tool.annotations for name, tool in listed(served, served.token).items()}
    reads = {name for name, hint in hints.items() if hint and hint.read_only_hint}
    assert reads == {name for name in hints if "list" in name or name == "recent_events"}
    destroys = {name for name, hint in hints.items() if hint and hint.destructive_hint}
    assert destroys >= {
        "system_rollback_disk_image",
        "system_set_disk_image_retention",
        "system_terminate_ci_worker",
        "system_set_default_disk_image_publication",
    }
    assert not destroys & reads
    repeatable = {name for name, hint in hints.items() if hint and hint.idempotent_hint}
    assert not repeatable & {"provision_disk_image_webhook", "system_rollback_disk_image"}
    assert all(hint and hint.open_world_hint is False for hint in hints.values())


def test_only_what_the_caller_may_do_is_listed(served: Served) -> None:
    token = served.token_of("reader", Permission.NODES_READ, Permission.CI_WORKERS_READ)
    assert set(listed(served, token)) == {"recent_events", "system_list_ci_workers"}
    assert listed(served, served.token_of("nobody", Permission.SECRETS_READ)) == {}
