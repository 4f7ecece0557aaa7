"""What build and explain start from: a recipe's folder, its locks, the plan, and where its sources are.

Reading and checking a recipe and its locks costs more than everything else that a build with nothing to
do does. So the plan is
kept in the store under a digest of all that it is made from (the files, the planner's own code, the kind
of machine): the same bytes give the same plan without being parsed and checked again.
"""

from __future__ import annotations

import hashlib
import json
import platform
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.definition import Json, Plan, RecipeFile, Stage, canonical_json
from pipelines.errors import RecipeError, StoreError
from pipelines.sources import PROJECT, Sources

if TYPE_CHECKING:
    from pipelines.lock import Lock
    from pipelines.recipe import Recipe
    from pipelines.store import Store

TOOLS_LOCK = PROJECT / "stages" / "tools.lock"
LOCK_TOOLS = "disk-image lock --tools"
# The code that turns the files into a plan.
_PLANNER = (
    "pipelines/build_definition.py", "pipelines/commands/request.py", "pipelines/definition.py",
    "pipelines/keys.py", "pipelines/lock.py", "pipelines/plan.py", "pipelines/recipe.py",
    "pipelines/toml_model.py", "stages/shared/purl.py", "supply_chain/provenance.py",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One recipe with the locks in force. `definition` is what they settle of SLSA's build definition
    (build_definition.py).
    """

    folder: Path
    lock_path: Path
    tools_lock_path: Path
    plan: Plan
    definition: dict[str, Json]
    sources: Sources

    def files(self) -> list[Path]:
        """The recipe, its locks, and the files beside it that a stage reads."""
        inputs = (wanted for stage in self.plan.stages for wanted in stage.inputs.values())
        beside = {wanted.path for wanted in inputs if isinstance(wanted, RecipeFile)}
        names = ("recipe.toml", *sorted(beside))
        return [*(self.folder / name for name in names), self.lock_path, self.tools_lock_path]

    def programs(self) -> dict[Path, str]:
        """Every file of the stages' programs, and its sha256."""
        found: dict[str, str] = {}
        for stage in self.plan.stages:
            found |= self.sources.program(stage.program)
        return {self.sources.project / path: sha256 for path, sha256 in found.items()}


def load_request(args: Namespace, store: Store) -> Request:
    """Read what the command line names. Raises RecipeError for a recipe or lock that can't be built here."""
    return with_locks(
        args.recipe, args.lock or args.recipe / "lock.json", args.tools_lock or TOOLS_LOCK, store
    )


def with_locks(folder: Path, lock_path: Path, tools_lock_path: Path, store: Store) -> Request:
    """The plan of the recipe in `folder` under these locks."""
    kept = _kept(store, folder / "recipe.toml", lock_path, tools_lock_path)
    planned = _read(kept) if kept else None
    if planned is None:
        planned = _plan(folder, lock_path, tools_lock_path)
        if kept:
            plan, definition = planned
            stages = [stage.to_json() for stage in plan.stages]
            # A store that can't be written may still hold everything that is needed.
            with suppress(StoreError):
                store.write(
                    kept, canonical_json({"name": plan.name, "stages": stages, "definition": definition})
                )
    return Request(folder, lock_path, tools_lock_path, *planned, Sources(recipe=folder))


def _kept(store: Store, *files: Path) -> Path | None:
    """Where the plan made from these files is kept; None when one of them can't be read, which planning
    will explain.
    """
    digest = hashlib.sha256(platform.machine().encode())
    try:
        for path in (*files, *(PROJECT / name for name in _PLANNER)):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    except OSError:
        return None
    return store.root / "plans" / f"{digest.hexdigest()}.json"


def _read(kept: Path) -> tuple[Plan, dict[str, Json]] | None:
    try:
        loaded = json.loads(kept.read_bytes())
        plan = Plan(loaded["name"], tuple(Stage.from_json(stage) for stage in loaded["stages"]))
        return plan, loaded["definition"]
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        return None


def _plan(folder: Path, lock_path: Path, tools_lock_path: Path) -> tuple[Plan, dict[str, Json]]:
    from pipelines.build_definition import planned
    from pipelines.lock import load_lock
    from pipelines.plan import plan
    from pipelines.recipe import check_host_arch, load_recipe
    from supply_chain import provenance

    recipe = load_recipe(folder)
    check_host_arch(recipe)
    lock = load_lock(lock_path, f"disk-image lock {folder}")
    tools = load_tools_lock(tools_lock_path, recipe.arch)
    _check_lock(recipe, folder, lock, lock_path)
    made = plan(recipe, lock, tools)
    documents = {
        "recipe:recipe.toml": (folder / "recipe.toml").read_bytes(),
        provenance.RECIPE_LOCK: lock_path.read_bytes(),
        provenance.TOOLS_LOCK: tools_lock_path.read_bytes(),
    }
    return made, planned(recipe, lock, tools, made, documents)


def load_tools_lock(path: Path, arch: str) -> Lock:
    """The tools' lock; RecipeError when it is for another architecture."""
    from pipelines.lock import load_lock

    tools = load_lock(path, LOCK_TOOLS)
    if tools.arch != arch:
        raise RecipeError(
            f"{path}: arch: expected {arch!r}, found {tools.arch!r}",
            f"on a machine of that kind: {LOCK_TOOLS}",
        )
    return tools


def _check_lock(recipe: Recipe, folder: Path, lock: Lock, path: Path) -> None:
    """A lock made for another recipe, or before the recipe changed, is refused by what differs."""
    relock = f"disk-image lock {folder}"
    for field, wanted, found in (("suite", recipe.suite, lock.suite), ("arch", recipe.arch, lock.arch)):
        if wanted != found:
            raise RecipeError(f"{path}: {field}: the recipe says {wanted!r}, the lock {found!r}", relock)
    from pipelines.recipe import SourceKernel

    kernel = recipe.kernel.source if isinstance(recipe.kernel, SourceKernel) else recipe.kernel.package
    asked = {"root": sorted(recipe.packages), "kernel": [kernel]}
    for name, packages in asked.items():
        if list(lock.requested.get(name, ())) != packages:
            gone = sorted(set(lock.requested.get(name, ())) - set(packages))
            new = sorted(set(packages) - set(lock.requested.get(name, ())))
            raise RecipeError(
                f"{path}: the recipe's {name} packages changed since it was locked"
                f" (new: {', '.join(new) or 'none'}; no longer asked for: {', '.join(gone) or 'none'})",
                relock,
            )
