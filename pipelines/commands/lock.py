"""disk-image lock: resolve a recipe's (or the tools') packages against signed indexes."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from pipelines.archive import archives
from pipelines.commands.request import LOCK_TOOLS, TOOLS_LOCK
from pipelines.errors import RecipeError, UsageError
from pipelines.evidence import Evidence, write_lock
from pipelines.lock import Lock, load_lock
from pipelines.recipe import host_arch, load_recipe
from pipelines.relock import changes
from pipelines.resolve import resolve, resolve_tools
from pipelines.tools import load_tools


def run(args: Namespace) -> int:
    """Exit code 1 only for `--check` with news."""
    if args.tools == (args.recipe is not None):
        raise UsageError(
            "expected a recipe or --tools", "disk-image lock RECIPE, or: disk-image lock --tools"
        )
    path: Path = TOOLS_LOCK if args.tools else args.recipe / "lock.json"
    command = LOCK_TOOLS if args.tools else f"disk-image lock {args.recipe}"
    old: Lock | None = None
    try:
        old = load_lock(path, command)
    except RecipeError:
        # Missing, or of another schema: a whole new lock takes its place, but there is no rest to keep.
        if args.update:
            raise
    new, evidence = _resolve(args, old)
    news = changes(old, new)
    written = not args.check and write_lock(path, new, evidence)
    if args.json:
        told = [{"name": change.name, "change": str(change)} for change in news]
        print(json.dumps({"lock": str(path), "written": written, "changes": told}))
    else:
        for change in news:
            print(change)
        print(f"{path}: {_summary(len(news), written, check=args.check)}")
    return 1 if args.check and news else 0


def _resolve(args: Namespace, old: Lock | None) -> tuple[Lock, Evidence]:
    roots, update = archives(args.archive or ()), tuple(args.update or ())
    if args.tools:
        expired = tuple(args.accept_expired or ())
        return resolve_tools(load_tools(), host_arch(), roots, expired=expired, locked=old, update=update)
    if args.accept_expired:
        raise UsageError(
            "--accept-expired is for the tools' extra suites", "use it with --tools, or leave it out"
        )
    return resolve(load_recipe(args.recipe), roots, locked=old, update=update)


def _summary(news: int, written: bool, *, check: bool) -> str:
    if check:
        return f"{news} changes to take with disk-image lock" if news else "up to date"
    return f"written, {news} changes" if written else "unchanged"
