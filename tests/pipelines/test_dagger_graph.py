"""The graph of a build on an engine: for each recipe, every container that is asked, with all it is given.

Read the golden in a diff when the pipeline changes. It holds no digest: neither of programs nor of locks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from syrupy.assertion import SnapshotAssertion

from pipelines.commands.request import TOOLS_LOCK, load_tools_lock
from pipelines.dagger_containers import Given, recipe_paths
from pipelines.dagger_executor import Build
from pipelines.definition import Plan
from pipelines.engine import Exec
from pipelines.lock import load_lock
from pipelines.plan import boot_plan, plan
from pipelines.progress import Silent
from pipelines.recipe import load_recipe
from pipelines.sources import PROJECT, Sources
from tests.pipelines.engine_recorder import Recorder, command


@pytest.mark.parametrize("name", ["quick", "debian-minimal"])
def test_containers_of_a_recipe(name: str, snapshot: SnapshotAssertion, tmp_path: Path) -> None:
    folder = PROJECT / "recipes" / name
    recipe = load_recipe(folder)
    tools = load_tools_lock(TOOLS_LOCK, recipe.arch)
    planned = plan(recipe, load_lock(folder / "lock.json", "relock"), tools)
    given = Given(
        recipe_files={path: f"recipe:{path}" for path in recipe_paths(planned)},
        pools=("pool of the caller",),
        archives=("http://archive.example/debian",),
    )
    recorder = Recorder()
    build = Build(planned, Sources(recipe=folder), recorder, given, Silent(), tmp_path)
    anyio.run(build.run, ["image", "sbom"])
    assert _graph(planned, recorder) == snapshot


def test_containers_of_a_boot(snapshot: SnapshotAssertion, tmp_path: Path) -> None:
    planned = boot_plan(load_tools_lock(TOOLS_LOCK, "amd64"), "amd64")
    recorder = Recorder()
    given = Given(externals={"layout": "layout of the caller"}, archives=("http://archive.example/debian",))
    build = Build(planned, Sources(), recorder, given, Silent(), tmp_path, anew=("boot",))
    anyio.run(build.run, ["boot"])
    assert _graph(planned, recorder) == snapshot


def _graph(planned: Plan, recorder: Recorder) -> dict[str, list[dict[str, Any]]]:
    """Each stage's containers in the order in which they were asked; keys by their stage's name."""
    kept = [command(asked) for asked in recorder.asked if command(asked)[0] == "keep"]
    keys = {key: stage for _, _, stage, key in kept}
    found: dict[str, list[dict[str, Any]]] = {stage.name: [] for stage in planned.stages}
    for asked in recorder.asked:
        verb, *words = list(command(asked))
        if verb == "last":
            found.setdefault("the plan", []).append(_described(asked, f"last {words[0]}"))
            continue
        stage = {"find": keys.get(words[0]), "keep": words[1] if verb == "keep" else None, "run": words[0]}[
            verb
        ]
        assert stage is not None
        shown = " ".join(f"<key of {keys[word]}>" if word in keys else word for word in (verb, *words))
        found[stage].append(_described(asked, shown))
    return found


def _described(asked: Exec, shown: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "command": shown,
        "root": "bootstrap image" if asked.tree is None else asked.tree,
        "files": asked.files,
        "folders": asked.folders,
        "texts": sorted(asked.texts),
        "program": sorted({_folder(path) for path in asked.programs.get("/stage/program", ())}),
        "volumes": asked.volumes,
        "fresh": asked.fresh,
    }
    return {name: value for name, value in described.items() if value not in ({}, [], False)}


def _folder(path: str) -> str:
    """A stage's own folder is one line; what it takes of others is named."""
    room, _, rest = path.partition("/")
    inner = rest.partition("/")[0] if room == "stages" and not rest.startswith("shared/") else ""
    return path if "/" not in rest or not inner else f"{room}/{inner}/"
