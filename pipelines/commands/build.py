"""disk-image build: run a recipe's plan and write the image's OCI layout."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands.request import LOCK_TOOLS, Request, load_request, with_locks
from pipelines.errors import ArchiveError, DiskImageError, StageError, UsageError
from pipelines.export import export_layout
from pipelines.local import Pending, Results, Transport, cached
from pipelines.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.evidence import Evidence
    from pipelines.lock import Lock, LockedFile

GONE, TOOLS_MIRROR = "gone", "mirror-tools-"


def run(args: Namespace) -> int:
    """Build; with nothing to do it reads and hashes every input, and loads no scheduler."""
    store = Store(args.store)
    with store.use():
        request = load_request(args, store)
        target = _target(request, args)
        if args.output is not None and target != "image":
            raise UsageError(f"--output takes the whole image, not the stage {target}", "leave out --output")
        request, results = _results(args, request, target, store)
        told: dict[str, object] = {
            "stages": [stage.to_json() for stage in results.stages],
            "lock": str(request.lock_path.absolute()),
            "tools_lock": str(request.tools_lock_path.absolute()),
        }
        if target == "image":
            digest = store.blob(results.output("composefs", "digest").content.digest).read_text().strip()
            manifest = export_layout(store, results.output("image", "layout"), args.output)
            told |= {"manifest_digest": f"sha256:{manifest}", "composefs_digest": digest}
    if args.json:
        print(json.dumps(told))
    else:
        _say(args, told, request.plan.name, results, store, target)
    return 0


def _target(request: Request, args: Namespace) -> str:
    names = [stage.name for stage in request.plan.stages]
    for option, wanted in (("--target", args.target), ("--only", args.only)):
        if wanted is not None and wanted not in names:
            raise UsageError(f"{option}: no stage {wanted!r}", f"one of: {', '.join(names)}")
    return args.only or args.target or "image"


def _results(args: Namespace, request: Request, target: str, store: Store) -> tuple[Request, Results]:
    anew = (args.only,) if args.only else ()
    if not anew:
        found = cached(request.plan, (target,), request.sources, store)
        if not isinstance(found, Pending):
            return request, found
    relocked: set[bool] = set()
    while True:
        try:
            return request, _run(args, request, target, store, anew)
        except StageError as error:
            if error.code != GONE:
                raise
            of_tools = error.stage.startswith(TOOLS_MIRROR)
            if not args.relock or of_tools in relocked:
                raise _with_successors(args, request, error) from error
            # The recipe's lock and the tools' may both have fallen behind, each is renewed once.
            relocked.add(of_tools)
            request = _relocked(args, request, error, store)


def _run(args: Namespace, request: Request, target: str, store: Store, anew: Sequence[str]) -> Results:
    from pipelines.local import run as run_plan
    from pipelines.progress import reporter

    return run_plan(
        request.plan, (target,), request.sources, store,
        transport=transport(args), reporter=reporter(), jobs=args.jobs, anew=anew,
    )  # fmt: skip


def transport(args: Namespace) -> Transport:
    """Where locked files may come from; a machine without any archive still builds from its pools and
    store.
    """
    from pipelines.archive import archives
    from pipelines.errors import ArchiveError

    pools = tuple(path.absolute() for path in args.pool or ())
    try:
        return Transport(archives(args.archive or ()), pools)
    except ArchiveError:
        if not pools:
            raise
        return Transport((), pools)


def _with_successors(args: Namespace, request: Request, error: StageError) -> StageError:
    """The same failure, saying what the archive has instead and the command that takes it."""
    from pipelines.archive import archives
    from pipelines.successors import successors
    from pipelines.tools import load_tools

    of_tools, lock, command = _locked_for(args, request, error)
    gone = [file for file in (*lock.packages, *lock.sources) if file.name in error.details]
    try:
        roots = archives(args.archive or ())
        found = successors(gone, lock, roots, tools=load_tools() if of_tools else None)
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
    from pipelines.lock import load_lock

    if error.stage.startswith(TOOLS_MIRROR):
        return True, load_lock(request.tools_lock_path, LOCK_TOOLS), LOCK_TOOLS
    command = f"disk-image lock {args.recipe}"
    return False, load_lock(request.lock_path, command), command


def _relocked(args: Namespace, request: Request, error: StageError, store: Store) -> Request:
    """Lock anew, beside the output, what the archive can't serve any more; say so, and plan with it."""
    from pipelines.archive import archives
    from pipelines.evidence import write_lock
    from pipelines.recipe import load_recipe
    from pipelines.resolve import resolve

    if args.output is None:
        raise UsageError("--relock needs --output: the new lock is written beside it", "add --output LAYOUT")
    of_tools, lock, _ = _locked_for(args, request, error)
    folder: Path = args.output.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{args.output.name}.{'tools.lock' if of_tools else 'lock.json'}"
    print(
        f"relock: the archive no longer has {', '.join(error.details)}; locking anew into {path}"
        " (the committed lock stays as it is)",
        file=sys.stderr,
    )
    roots = archives(args.archive or ())
    write_lock(
        path, *(_tools_anew(lock, roots) if of_tools else resolve(load_recipe(request.folder), roots))
    )
    if of_tools:
        return with_locks(request.folder, request.lock_path, path, store)
    return with_locks(request.folder, path, request.tools_lock_path, store)


def _tools_anew(lock: Lock, roots: Sequence[str]) -> tuple[Lock, Evidence]:
    """The tools' lock against today's archive.

    An extra suite whose index is past its Valid-Until may confirm what the committed lock has, never
    change it: a replayed old index could otherwise bring an old package back.
    """
    from pipelines.resolve import resolve_tools
    from pipelines.tools import load_tools

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


def _say(
    args: Namespace, told: dict[str, object], plan: str, results: Results, store: Store, target: str
) -> None:
    if target != "image":
        record = results.records[target]
        for name, stored in sorted(record.outputs.items()):
            print(f"{target}.{name}  sha256:{stored.content.digest}  {stored.size} bytes")
        if args.only:
            print(store.log_path(plan, target).read_text(errors="replace"), end="")
        return
    print(f"manifest digest   {told['manifest_digest']}")
    print(f"composefs digest  sha256:{told['composefs_digest']}")
    if args.output is not None:
        print(f"image             {args.output}")
        print(f"next              disk-image boot {args.output}")
