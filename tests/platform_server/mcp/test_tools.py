"""What the server lists: the tutorial's actions by their names, parameters and returns."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.types import Tool
from syrupy.assertion import SnapshotAssertion

from platform_server.action_table import ACTIONS, read_params
from platform_server.errors import Invalid
from platform_server.permissions import Permission
from tests.platform_server.mcp.conftest import Served
from tests.platform_server.mcp.connecting import over_http

pytestmark = pytest.mark.one_database

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
    tools = listed(served, served.token)
    for name, golden in TUTORIAL.items():
        annotations = tools[name].annotations
        assert annotations is not None
        hints = annotations.model_dump(by_alias=True, exclude_none=True)
        true = {name for name, is_true in hints.items() if is_true}
        assert true == {f"{name}Hint" for name in golden["hints"]}


def test_only_what_the_caller_may_do_is_listed(served: Served) -> None:
    may = (Permission.NODES_READ, Permission.CI_WORKERS_READ)
    tools = set(listed(served, served.token_of("reader", *may)))
    assert tools == {name for name, action in ACTIONS.items() if action.permission in may}
    assert tools >= {"recent_events", "system_list_ci_workers"}
    assert listed(served, served.token_of("nobody", Permission.SECRETS_READ)) == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    max_leaves=5,
)
_FIELDS = sorted({name for action in ACTIONS.values() for name in action.params.model_fields})


@settings(max_examples=500)
@given(
    name=st.sampled_from(sorted(ACTIONS)),
    given_=st.dictionaries(st.sampled_from(_FIELDS) | st.text(), _JSON, max_size=4),
)
def test_any_arguments_are_taken_or_refused_in_one_short_line(name: str, given_: dict[str, Any]) -> None:
    try:
        read_params(ACTIONS[name], given_)
        said = "taken"
    except Invalid as error:
        said = error.what
    assert said.isprintable()
    assert len(said) < 400
