"""Keys: equal exactly where everything a stage may depend on is equal."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.definition import (
    External,
    Input,
    Json,
    Output,
    OutputKind,
    Program,
    RecipeFile,
    Stage,
    StageOutput,
)
from pipelines.keys import Content, Document, document, files_digest, key

DIGEST = st.integers(0, 3).map(lambda number: hashlib.sha256(bytes([number])).hexdigest())
NAME = st.sampled_from(["a", "b", "c"])
PARAMS: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "0", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAME, inner, max_size=2),
    max_leaves=4,
)
INPUTS: st.SearchStrategy[Input] = st.one_of(
    NAME.map(RecipeFile), NAME.map(External), st.builds(StageOutput, NAME, NAME)
)

KINDS = st.dictionaries(NAME, st.sampled_from(OutputKind), max_size=2)
Facts: TypeAlias = tuple[Stage, dict[str, str], str | None, dict[str, Content]]


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    """Everything that a key is computed from."""
    inputs = draw(st.dictionaries(NAME, INPUTS, max_size=2))
    tools = draw(st.none() | st.builds(StageOutput, NAME, NAME))
    stage = Stage(
        name=draw(NAME),
        program=Program(draw(NAME), tuple(draw(st.lists(NAME, max_size=2)))),
        source_date_epoch=draw(st.integers(0, 1)),
        outputs=tuple(Output(name, kind) for name, kind in draw(KINDS).items()),
        params=draw(st.dictionaries(NAME, PARAMS, max_size=2)),
        inputs=inputs,
        tools=tools,
        network=draw(st.booleans()),
    )  # fmt: skip
    contents = {name: Content(draw(st.sampled_from(OutputKind)), draw(DIGEST)) for name in inputs}
    program = draw(st.dictionaries(NAME, DIGEST, max_size=2))
    return stage, program, None if tools is None else draw(DIGEST), contents


def _told(of: Facts) -> str:
    """The facts as text that tells apart what Python's == does not (0 and False) and no order."""
    stage, program, tools, contents = of
    outputs = sorted((output.name, output.kind) for output in stage.outputs)
    parts = [
        stage.name, stage.program.module, list(stage.program.paths), stage.source_date_epoch, outputs,
        stage.params, {name: repr(wanted) for name, wanted in stage.inputs.items()}, repr(stage.tools),
        stage.network, program, tools, {name: str(content) for name, content in contents.items()},
    ]  # fmt: skip
    return json.dumps(parts, sort_keys=True)


@given(facts(), facts())
def test_keys_are_equal_exactly_where_the_facts_are(
    one: Facts,
    other: Facts,
) -> None:
    assert (key(document(*one)) == key(document(*other))) == (_told(one) == _told(other))


@given(facts())
def test_no_order_moves_a_key(one: Facts) -> None:
    stage, program, tools, contents = one
    turned = replace(
        stage,
        params=dict(reversed([*stage.params.items()])),
        inputs=dict(reversed([*stage.inputs.items()])),
        outputs=tuple(reversed(stage.outputs)),
    )
    other = document(turned, dict(reversed(program.items())), tools, dict(reversed(contents.items())))
    assert key(other) == key(document(*one))


@given(facts())
def test_a_key_survives_the_document_s_way_through_a_file(
    one: Facts,
) -> None:
    kept: Document = json.loads(json.dumps(document(*one)))
    assert key(kept) == key(document(*one))


def _stage(**changed: object) -> Stage:
    defined: dict[str, object] = {
        "name": "s", "program": Program("m", ("p",)), "source_date_epoch": 1, "outputs": (Output("out"),),
    }  # fmt: skip
    return Stage(**{**defined, **changed})  # type: ignore[arg-type]


def test_every_component_moves_the_key() -> None:
    base = key(
        document(
            _stage(inputs={"i": RecipeFile("f")}), {"p": "1"}, None, {"i": Content(OutputKind.FILE, "1")}
        )
    )
    with_input = _stage(inputs={"i": RecipeFile("f")})
    file_1, files_1 = Content(OutputKind.FILE, "1"), Content(OutputKind.FILES, "1")
    others = [
        key(document(_stage(inputs={"i": RecipeFile("g")}), {"p": "1"}, None, {"i": file_1})),
        key(document(with_input, {"p": "2"}, None, {"i": file_1})),
        key(document(with_input, {"q": "1"}, None, {"i": file_1})),
        key(document(with_input, {"p": "1"}, None, {"i": Content(OutputKind.FILE, "2")})),
        key(document(with_input, {"p": "1"}, None, {"i": files_1})),
        key(document(_stage(inputs={"i": RecipeFile("f")}, network=True), {"p": "1"}, None, {"i": file_1})),
        key(
            document(_stage(inputs={"i": RecipeFile("f")}, params={"x": 1}), {"p": "1"}, None, {"i": file_1})
        ),
    ]
    assert len({base, *others}) == len(others) + 1


def test_accelerators_are_in_no_key() -> None:
    assert key(document(_stage(accelerators=("ccache",)), {}, None, {})) == key(
        document(_stage(), {}, None, {})
    )


def test_the_digest_of_a_folder_is_that_of_the_canonical_list() -> None:
    listed = b'[["a","11"],["b/c","22"]]'
    assert files_digest([("b/c", "22"), ("a", "11")]) == hashlib.sha256(listed).hexdigest()


def test_a_folder_s_paths_are_sorted_by_their_bytes() -> None:
    expected = '[["B","1"],["a","2"],["ä","3"]]'.encode()
    assert files_digest([("ä", "3"), ("a", "2"), ("B", "1")]) == hashlib.sha256(expected).hexdigest()


def test_inputs_without_content_are_refused() -> None:
    with pytest.raises(ValueError, match="has inputs"):
        document(_stage(inputs={"i": RecipeFile("f")}), {}, None, {})


def test_a_tools_tree_without_digest_is_refused() -> None:
    with pytest.raises(ValueError, match="tools"):
        document(_stage(tools=StageOutput("t", "tree")), {}, None, {})
