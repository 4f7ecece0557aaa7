"""A locked file has left the archive: build names its successor, or locks anew beside the output."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pipelines.archive import archives
from pipelines.commands.request import LOCK_TOOLS, Request, with_locks
from pipelines.errors import ArchiveError, DiskImageError, StageError, UsageError
from pipelines.evidence import Evidence, write_lock
from pipelines.lock import Lock, LockedFile, load_lock
from pipelines.recipe import load_recipe
from pipelines.resolve import resolve, resolve_tools
from pipelines.store import Store
from pipelines.successors import successors
from pipelines.tools import load_tools


def of_tools(error: StageError) -> bool:
    """Whether the mirror that failed serves the tools."""
    return error.stage.startswith("mirror-tools-")


def with_successors(args: Namespace, request: Request, error: StageError) -> StageError:
    """The same failure, saying what the archive has instead and the command that takes it."""
    tools, lock, command = _locked_for(args, request, error)
    gone = [file for file in (*lock.packages, *lock.sources) if file.name in error.details]
    try:
        roots = archives(args.archive or ())
        found = successors(gone, lock, roots, tools=load_tools() if tools else None)
    except DiskImageError as unanswered:
        instead = f"what it has instead could not be asked: {unanswered.what}"
    else:
        instead = "; ".join(
            f"{file.name} {file.version}: the archive now has {_name_version(found[file.name])}"
            for file in gone
        )
    return StageError(
        what=f"{error.what} ({instead})",
        hint=f"{command}, or build with --relock to leave the committed lock alone",
        stage=error.stage, code=error.code, details=error.details, log=error.log,
    )  # fmt: skip


def _name_version(file: LockedFile | None) -> str:
    return "nothing in its place" if file is None else f"{file.name} {file.version}"


def _locked_for(args: Namespace, request: Request, error: StageError) -> tuple[bool, Lock, str]:
    """Whether the failed mirror serves the tools, the lock it serves, and the command that relocks."""
    if of_tools(error):
        return True, load_lock(request.tools_lock_path, LOCK_TOOLS), LOCK_TOOLS
    command = f"disk-image lock {args.recipe}"
    return False, load_lock(request.lock_path, command), command


def relocked(args: Namespace, request: Request, error: StageError, store: Store) -> Request:
    """Lock anew, beside the output, what the archive can't serve any more; say so, and plan with it."""
    if args.output is None:
        raise UsageError("--relock needs --output: the new lock is written beside it", "add --output LAYOUT")
    tools, lock, _ = _locked_for(args, request, error)
    folder: Path = args.output.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{args.output.name}.{'tools.lock' if tools else 'lock.json'}"
    print(
        f"relock: the archive no longer has {', '.join(error.details)}; locking anew into {path}"
        " (the committed lock stays as it is)",
        file=sys.stderr,
    )
    roots = archives(args.archive or ())
    write_lock(path, *(_tools_anew(lock, roots) if tools else resolve(load_recipe(request.folder), roots)))
    if tools:
        return with_locks(request.folder, request.lock_path, path, store)
    return with_locks(request.folder, path, request.tools_lock_path, store)


def _tools_anew(lock: Lock, roots: Sequence[str]) -> tuple[Lock, Evidence]:
    """The tools' lock against today's archive.

    An extra suite whose index is past its Valid-Until may confirm what the committed lock has, never
    change it: a replayed old index could otherwise bring an old package back.
    """
    tools = load_tools()
    try:
        return resolve_tools(tools, lock.arch, roots)
    except ArchiveError as refused:
        suites = [extra.suite for extra in tools.extra]
        fresh, evidence = resolve_tools(tools, lock.arch, roots, expired=suites)
        extra = {name for suite in tools.extra for name in suite.packages}
        before, after = (
            {f.name: f.sha256 for f in one.packages if f.name in extra} for one in (lock, fresh)
        )
        if before != after:
            raise refused
        return fresh, evidence
