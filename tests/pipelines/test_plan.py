"""plan(): goldens of what each recipe's build is, and the rules every plan keeps."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from pipelines.definition import Output, Plan, Program, Stage, StageOutput
from pipelines.lock import Lock
from pipelines.plan import boot_plan, plan
from pipelines.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.parent.name for path in ROOT.glob("recipes/*/recipe.toml"))
TOOL_SETS = ("packages", "image", "kernel", "boot")


def _lock(recipe: Recipe, *sets: str) -> Lock:
    """One package a set: a relock of the committed recipes changes no golden."""
    packages = [
        {
            "name": f"for-{name}",
            "version": "1:2.0-1",
            "arch": recipe.arch,
            "sha256": f"{index:064x}",
            "size": 1000 + index,
            "pool_path": f"pool/main/f/for-{name}_2.0-1_{recipe.arch}.deb",
            "sets": [name],
        }
        for index, name in enumerate(sets)
    ]
    fields = {"schema": 1, "suite": recipe.suite, "arch": recipe.arch, "requested": {}, "packages": packages}
    return Lock.model_validate(fields)


def _plan(name: str) -> Plan:
    recipe = load_recipe(ROOT / "recipes" / name)
    return plan(recipe, _lock(recipe, "root", "kernel", "initramfs"), _lock(recipe, *TOOL_SETS))


def _rendered(built: Plan) -> str:
    return json.dumps([stage.to_json() for stage in built.stages], indent=1)


@pytest.mark.parametrize("name", RECIPES)
def test_plan_of_each_recipe(name: str, snapshot: SnapshotAssertion) -> None:
    assert _rendered(_plan(name)) == snapshot


def test_plan_of_the_boot_check(snapshot: SnapshotAssertion) -> None:
    recipe = load_recipe(ROOT / "recipes" / "quick")
    assert _rendered(boot_plan(_lock(recipe, *TOOL_SETS), recipe.arch)) == snapshot


def test_planning_twice_gives_the_same_bytes() -> None:
    assert _rendered(_plan("quick")) == _rendered(_plan("quick"))


def test_the_set_of_a_package_is_in_no_definition() -> None:
    recipe = load_recipe(ROOT / "recipes" / "quick")
    lock, tools = _lock(recipe, "root", "kernel", "initramfs"), _lock(recipe, *TOOL_SETS)
    widened = lock.model_copy(
        update={"packages": tuple(f.model_copy(update={"sets": (*f.sets, "other")}) for f in lock.packages)}
    )
    assert _rendered(plan(recipe, widened, tools)) == _rendered(plan(recipe, lock, tools))


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return found


def _programs() -> dict[str, Program]:
    recipes = [_plan(name) for name in RECIPES]
    recipe = load_recipe(ROOT / "recipes" / "quick")
    boot = boot_plan(_lock(recipe, *TOOL_SETS), recipe.arch)
    return {stage.program.module: stage.program for built in (*recipes, boot) for stage in built.stages}


@pytest.mark.parametrize("module", sorted(_programs()))
def test_a_program_imports_only_what_its_definition_lists(module: str) -> None:
    program = _programs()[module]
    listed = {
        source
        for path in program.paths
        for source in ([ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("*.py"))
    }
    assert ROOT.joinpath(*module.split("."), "__main__.py") in listed, "the program can't be run"
    for source in listed:
        for name in _imports(source):
            if name.split(".")[0] not in ("stages", "initramfs", "pipelines", "supply_chain"):
                outside = name.split(".")[0] in sys.stdlib_module_names or name.split(".")[0] == "zstandard"
                assert outside, f"{source}: {name} is neither the project's nor in the stage's python"
                continue
            path = ROOT.joinpath(*name.split("."))
            candidates = {path.with_suffix(".py"), path / "__init__.py", path.parent.with_suffix(".py")}
            assert candidates & listed, f"{source}: imports {name}, which the plan's program does not list"


def test_a_stage_before_what_it_needs_is_refused() -> None:
    program = Program("stages.x", ())
    with pytest.raises(ValueError, match=r"late\.tree, which no earlier stage has"):
        Plan(
            "wrong",
            (
                Stage("early", program, 1, (Output("tree"),), inputs={"tree": StageOutput("late", "tree")}),
                Stage("late", program, 1, (Output("tree"),)),
            ),
        )


def test_closure_keeps_only_what_the_target_needs() -> None:
    built = _plan("quick")
    assert [stage.name for stage in built.closure("packages").stages] == [
        "mirror-tools-packages", "tools-packages", "mirror-root", "packages",
    ]  # fmt: skip
