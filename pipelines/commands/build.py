"""disk-image build: run a recipe's plan and write the image's OCI layout, its SBOM and its build record."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipelines.build_record import Run, definition, write_build_record
from pipelines.checkout import git_sha
from pipelines.commands.request import Request, load_request
from pipelines.errors import StageError, UsageError
from pipelines.export import export_layout
from pipelines.local import Pending, Results, Transport, cached
from pipelines.store import Store
from supply_chain.beside import build_record_path, sbom_path, write_beside

FSVERITY = "containers.composefs.fsverity"
# The mirror's word for a locked file that no place has any more.
GONE = "gone"


def run(args: Namespace) -> int:
    """Build; with nothing to do it reads and hashes every input, and loads no scheduler."""
    started = datetime.now(UTC)
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
            digest = _composefs_digest(store.blob(results.output("image", "manifest").content.digest))
            manifest = export_layout(store, results.output("image", "layout"), args.output)
            told |= {"manifest_digest": f"sha256:{manifest}", "composefs_digest": f"sha256:{digest}"}
            if args.output is not None:
                told |= _documents(args, request, results, store, f"sha256:{manifest}", started)
    if args.json:
        print(json.dumps(told))
    else:
        _say(args, told, request.plan.name, results, store, target)
    return 0


def _composefs_digest(manifest: Path) -> str:
    """The root's fs-verity digest (hex), as its layer is annotated."""
    annotated = (layer.get("annotations", {}) for layer in json.loads(manifest.read_bytes())["layers"])
    found: str = next(each[FSVERITY] for each in annotated if FSVERITY in each)
    return found.removeprefix("sha256:")


def _documents(
    args: Namespace, request: Request, results: Results, store: Store, image: str, started: datetime
) -> dict[str, object]:
    """Write SBOM and build record beside the layout; say where they are and which commit was built."""
    commit = git_sha(args.git_sha, request.folder, request.files(), request.programs())
    sbom, record = sbom_path(args.output), build_record_path(args.output)
    write_beside(sbom, store.blob(results.output("sbom", "document").content.digest).read_bytes())
    write_build_record(record, image, definition(request, commit), _this_run(args, started))
    return {"sbom": str(sbom), "build_record": str(record), "git_sha": commit}


def _this_run(args: Namespace, started: datetime) -> Run:
    if args.executor == "local":
        return Run("local", started)
    from pipelines.dagger_engine import BASE, VERSION

    return Run(f"dagger {VERSION}", started, args.base or BASE)


def _target(request: Request, args: Namespace) -> str:
    names = [stage.name for stage in request.plan.stages]
    for option, wanted in (("--target", args.target), ("--only", args.only)):
        if wanted is not None and wanted not in names:
            raise UsageError(f"{option}: no stage {wanted!r}", f"one of: {', '.join(names)}")
    if args.only and args.executor == "dagger":
        raise UsageError(
            "--only is for the local executor", "see the stage with: dagger call shell --stage STAGE"
        )
    if args.base and args.executor == "local":
        raise UsageError("--base is for --executor dagger", "leave out --base")
    return args.only or args.target or "image"


def _results(args: Namespace, request: Request, target: str, store: Store) -> tuple[Request, Results]:
    anew = (args.only,) if args.only else ()
    if not anew and args.executor == "local":
        found = cached(request.plan, _outputs(target), request.sources, store)
        if not isinstance(found, Pending):
            return request, found
    relocked: set[bool] = set()
    while True:
        try:
            return request, _run(args, request, target, store, anew)
        except StageError as error:
            if error.code != GONE:
                raise
            from pipelines.commands import relocking

            tools = relocking.of_tools(error)
            if not args.relock or tools in relocked:
                raise relocking.with_successors(args, request, error) from error
            # The recipe's lock and the tools' may both have fallen behind, each is renewed once.
            relocked.add(tools)
            request = relocking.relocked(args, request, error, store)


def _outputs(target: str) -> tuple[str, ...]:
    """What must be in the store in the end: of the whole image also its SBOM."""
    return ("image", "sbom") if target == "image" else (target,)


def _run(args: Namespace, request: Request, target: str, store: Store, anew: Sequence[str]) -> Results:
    from pipelines.progress import reporter

    if args.executor == "dagger":
        from pipelines.dagger_client import build_with_engine

        return build_with_engine(
            request.plan, _outputs(target), request.sources, store,
            transport=transport(args), reporter=reporter(), base=args.base, jobs=args.jobs,
        )  # fmt: skip
    from pipelines.local import run as run_plan

    return run_plan(
        request.plan, _outputs(target), request.sources, store,
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
    print(f"composefs digest  {told['composefs_digest']}")
    if args.output is not None:
        print(f"image             {args.output}")
        print(f"SBOM              {told['sbom']}")
        print(f"build record      {told['build_record']}")
        print(f"next              disk-image boot {args.output}")
