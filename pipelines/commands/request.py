"""What build, explain and lock start from: a recipe, its locks, the plan, and where everything is."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from pipelines.definition import Plan
from pipelines.errors import RecipeError
from pipelines.lock import Lock, load_lock
from pipelines.plan import plan
from pipelines.recipe import Recipe, SourceKernel, check_host_arch, load_recipe
from pipelines.sources import PROJECT, Sources

TOOLS_LOCK = PROJECT / "stages" / "tools.lock"
LOCK_TOOLS = "disk-image lock --tools"


@dataclass(frozen=True)
class Request:
    """One recipe with the locks in force."""

    recipe: Recipe
    lock_path: Path
    tools_lock_path: Path
    plan: Plan
    sources: Sources


def load_request(args: Namespace) -> Request:
    """Read what the command line names. Raises RecipeError for a recipe or lock that can't be built here."""
    recipe = load_recipe(args.recipe)
    check_host_arch(recipe)
    return with_locks(recipe, args.recipe, args.lock or args.recipe / "lock.json", args.tools_lock or TOOLS_LOCK)


def with_locks(recipe: Recipe, folder: Path, lock_path: Path, tools_lock_path: Path) -> Request:
    """The plan of `recipe` under these locks."""
    lock = load_lock(lock_path, f"disk-image lock {folder}")
    tools = load_tools_lock(tools_lock_path, recipe.arch)
    _check_lock(recipe, folder, lock, lock_path)
    return Request(recipe, lock_path, tools_lock_path, plan(recipe, lock, tools), Sources(recipe=folder))


def load_tools_lock(path: Path, arch: str) -> Lock:
    """The tools' lock; RecipeError when it is for another architecture."""
    tools = load_lock(path, LOCK_TOOLS)
    if tools.arch != arch:
        raise RecipeError(
            f"{path}: arch: expected {arch!r}, found {tools.arch!r}", f"on a machine of that kind: {LOCK_TOOLS}"
        )
    return tools


def _check_lock(recipe: Recipe, folder: Path, lock: Lock, path: Path) -> None:
    """A lock made for another recipe, or before the recipe changed, is refused by what differs."""
    relock = f"disk-image lock {folder}"
    for field, wanted, found in (("suite", recipe.suite, lock.suite), ("arch", recipe.arch, lock.arch)):
        if wanted != found:
            raise RecipeError(f"{path}: {field}: the recipe says {wanted!r}, the lock {found!r}", relock)
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
