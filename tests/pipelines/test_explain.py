"""Why a stage runs, in words: the texts are what people read, so they are kept as goldens."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from pipelines.definition import Plan, RecipeFile, StageOutput
from pipelines.explain import changes, explain, shown
from tests.pipelines.executor import World

BASE: dict[str, Any] = {
    "environment": 1,
    "definition": {
        "name": "rootfs",
        "program": {"module": "stages.rootfs", "paths": ["stages/rootfs"]},
        "source_date_epoch": 1700000000,
        "params": {
            "hostname": "node",
            "files": [
                {"path": "/etc/a", "mode": "0644"},
                {"path": "/etc/b", "mode": "0644"},
                {"path": "/etc/c", "mode": "0644"},
                {"path": "/etc/motd", "mode": "0644"},
            ],
            "packages": ["bash:amd64=5.2", "dash:amd64=0.5", "sed:amd64=4.9"],
        },
        "tools": {"stage_output": "tools-image.tree"},
        "inputs": {
            "packages": {"stage_output": "packages.tree"},
            "file-0000": {"recipe_file": "root/etc/motd"},
        },
        "outputs": {"tree": "file"},
        "network": False,
    },
    "program": {"stages/rootfs/__main__.py": "1" * 64, "stages/shared/job.py": "2" * 64},
    "tools": "3" * 64,
    "inputs": {"packages": "file:" + "4" * 64, "file-0000": "file:" + "5" * 64},
}


def _edited(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(BASE)
    place: Any = document
    for part in path[:-1]:
        place = place[part]
    if value is None:
        del place[path[-1]]
    elif isinstance(place, list) and isinstance(path[-1], int) and value == "insert":
        place.insert(path[-1], {"path": "/etc/aa", "mode": "0600"})
    else:
        place[path[-1]] = value
    return document


CASES: dict[str, dict[str, Any]] = {
    "nothing": BASE,
    "input": _edited(("inputs", "packages"), "file:" + "6" * 64),
    "recipe file": _edited(("inputs", "file-0000"), "file:" + "7" * 64),
    "input of another kind": _edited(("inputs", "packages"), "files:" + "6" * 64),
    "input of another place": _edited(
        ("definition", "inputs", "file-0000"), {"recipe_file": "root/etc/other"}
    ),
    "parameter": _edited(("definition", "params", "hostname"), "other"),
    "parameter in a list": _edited(("definition", "params", "files", 3, "mode"), "0755"),
    "list gets an element": _edited(("definition", "params", "files", 1), "insert"),
    "list loses an element": _edited(("definition", "params", "packages", 1), None),
    "parameter is gone": _edited(("definition", "params", "hostname"), None),
    "parameter is new": _edited(("definition", "params", "users"), [{"name": "operator"}]),
    "parameter of another type": _edited(("definition", "params", "hostname"), 0),
    "program": _edited(("program", "stages/rootfs/__main__.py"), "8" * 64),
    "program file is new": _edited(("program", "stages/rootfs/users.py"), "8" * 64),
    "program file is gone": _edited(("program", "stages/shared/job.py"), None),
    "tools": _edited(("tools",), "9" * 64),
    "time": _edited(("definition", "source_date_epoch"), 1800000000),
    "outputs": _edited(("definition", "outputs", "log"), "file"),
    "environment": _edited(("environment",), 2),
}


@pytest.mark.parametrize("case", CASES)
def test_every_change_is_named(case: str, snapshot: SnapshotAssertion) -> None:
    assert changes(BASE, CASES[case]) == snapshot


def test_a_long_list_of_changes_is_cut_with_a_count() -> None:
    assert shown(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"
    assert shown(["a"]) == "a"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)
PARAMS = st.dictionaries(st.sampled_from("pq"), JSON)


@given(PARAMS, PARAMS)
def test_parameters_differ_exactly_where_a_change_is_named(one: Any, other: Any) -> None:
    old, new = _edited(("definition", "params"), one), _edited(("definition", "params"), other)
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (changes(old, new) == []) == same


COPY = 'job.output("out").write_text("".join(l for l in job.input("in").open() if l[0] != "#"))'


def _plan(world: World) -> Plan:
    first = world.stage("first", COPY, inputs={"in": RecipeFile("text")})
    second = world.stage("second", COPY, inputs={"in": StageOutput("first", "out")})
    return Plan("plan", (first, second))


def _told(world: World, plan: Plan) -> list[tuple[str, str, tuple[str, ...]]]:
    found = explain(plan, world.sources(), world.store)
    return [(one.stage, one.result, one.why) for one in found]


def test_a_plan_s_life_in_words(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    world = World.new(tmp_path)
    (world.recipe / "text").write_text("text\n")
    plan = _plan(world)
    told = {"before the first run": _told(world, plan)}
    world.run(plan)
    told["after it"] = _told(world, plan)
    (world.recipe / "text").write_text("# comment\ntext\n")
    told["a comment came"] = _told(world, plan)
    world.run(plan)
    told["after that run"] = _told(world, plan)
    (world.recipe / "text").write_text("other\n")
    told["the text changed"] = _told(world, plan)
    results = world.run(plan)
    told["what that run said"] = [(one.name, one.result, (one.why,)) for one in results.stages]
    world.store.result_path(results.records["second"].key).unlink()
    told["a result was collected"] = _told(world, plan)
    assert told == snapshot


def test_explaining_runs_and_writes_nothing(tmp_path: Path) -> None:
    world = World.new(tmp_path)
    (world.recipe / "text").write_text("text\n")
    _told(world, _plan(world))
    assert not world.store.root.exists()
