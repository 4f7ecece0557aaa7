"""disk-image build: run a recipe's plan and write the image's OCI layout."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands.request import Request, load_request, with_locks
from pipelines.errors import StageError, UsageError
from pipelines.export import export_layout
from pipelines.local import Pending, Results, Transport, cached
from pipelines.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

GONE = "gone"


def run(args: Namespace) -> int:
    """Build; with nothing to do it reads and hashes every input, and loads no scheduler."""
    request = load_request(args)
    target = _target(request, args)
    if args.output is not None and target != "image":
        raise UsageError(f"--output takes the whole image, not the stage {target}", "leave out --output")
    store = Store(args.store)
    with store.use():
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
    try:
        return request, _run(args, request, target, store, anew)
    except StageError as error:
        if error.code != GONE:
            raise
        if not args.relock:
            raise _with_successors(args, request, error) from error
        request = _relocked(args, request, error)
        return request, _run(args, request, target, store, anew)


def _run(args: Namespace, request: Request, target: str, store: Store, anew: Sequence[str]) -> Results:
    from pipelines.local import run as run_plan
    from pipelines.progress import reporter

    return run_plan(
        request.plan, (target,), request.sources, store,
        transport=transport(args), reporter=reporter(), jobs=args.jobs, anew=anew,
    )  # fmt: skip


def transport(args: Namespace) -> Transport:
    """Where locked files may come from; a machine without any archive still builds from its pools and store."""
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
    from pipelines.relock import successors

    tools = "tools" in error.stage
    found = successors(error.details, request.recipe, archives(args.archive or ()), tools=tools)
    command = "disk-image lock --tools" if tools else f"disk-image lock {args.recipe}"
    return StageError(
        what=f"{error.what} ({'; '.join(found)})" if found else error.what,
        hint=f"{command}, or build with --relock to leave the committed lock alone",
        stage=error.stage, code=error.code, details=error.details, log=error.log,
    )  # fmt: skip


def _relocked(args: Namespace, request: Request, error: StageError) -> Request:
    """Lock beside the output, say so, and plan anew."""
    from pipelines.archive import archives
    from pipelines.evidence import write_lock
    from pipelines.recipe import host_arch
    from pipelines.resolve import resolve, resolve_tools
    from pipelines.tools import load_tools

    if args.output is None:
        raise UsageError("--relock needs --output: the new locks are written beside it", "add --output LAYOUT")
    folder: Path = args.output.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    lock_path, tools_path = (folder / f"{args.output.name}.{name}" for name in ("lock.json", "tools.lock"))
    print(
        f"relock: the archive no longer has {', '.join(error.details)}; locking anew into {lock_path} and {tools_path}"
        " (the committed locks stay as they are)",
        file=sys.stderr,
    )
    roots = archives(args.archive or ())
    write_lock(lock_path, *resolve(request.recipe, roots))
    write_lock(tools_path, *resolve_tools(load_tools(), host_arch(), roots))
    return with_locks(request.recipe, args.recipe, lock_path, tools_path)


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
