"""`disk-image build --executor dagger`: a plan on an engine, through the SDK's client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import dagger
from anyio.to_thread import run_sync
from dagger import dag

from pipelines.dagger_containers import Given, pool_files, recipe_paths
from pipelines.dagger_engine import BASE, DaggerEngine, EngineError, connected
from pipelines.dagger_executor import JOBS, Build
from pipelines.definition import OutputKind, Plan
from pipelines.local import Results, Transport
from pipelines.progress import Reporter
from pipelines.records import Record, Signature, Stored
from pipelines.sources import Sources, sha256_file
from pipelines.store import Store
from stages.shared.canonical_tar import unpack


def build_with_engine(
    plan: Plan,
    targets: Sequence[str],
    sources: Sources,
    store: Store,
    *,
    transport: Transport,
    reporter: Reporter,
    base: str | None = None,
    jobs: int | None = None,
) -> Results:
    """Run what `targets` need on a Dagger engine; the targets' outputs are in the store afterwards.

    Folders among the archives are handed in as pools are: the engine may be on another machine. The caller
    holds `store.use()`. Raises EngineError for the engine, StageError for a stage, StoreError for the store.
    """

    async def main() -> Results:
        async with connected():
            build = Build(
                plan,
                sources,
                DaggerEngine(base or BASE),
                _given(plan, sources, transport),
                reporter,
                store.root / "logs" / plan.name,
                jobs=jobs or JOBS,
            )
            finished = await build.run(targets)
            wanted = [(stage, output.name) for stage in targets for output in plan.stage(stage).outputs]
            outputs: dict[str, dict[str, Stored]] = {}
            signatures: dict[str, dict[str, Signature]] = {}
            for stage, name in wanted:
                signed = signatures.setdefault(stage, {})
                outputs.setdefault(stage, {})[name] = await _pulled(build, store, stage, name, signed)
        records = {
            stage: Record(stage, build.key(stage), {}, outputs[stage], signatures[stage], 0.0)
            for stage in outputs
        }
        return Results(finished, records)

    return anyio.run(main)


def _given(plan: Plan, sources: Sources, transport: Transport) -> Given:
    """The caller's files, each by itself: nothing else of a folder is sent."""
    local = [Path(archive) for archive in transport.archives if archive.startswith("/")]
    names = pool_files(plan)
    pools = [
        dag.host().directory(str(pool.absolute()), include=found)
        for pool in (*transport.pools, *local)
        if (found := [name for name in names if (pool / name).is_file()])
    ]
    recipe_files = {}
    for path in recipe_paths(plan):
        assert sources.recipe is not None
        recipe_files[path] = dag.host().file(str((sources.recipe / path).resolve()))
    urls = [archive for archive in transport.archives if not archive.startswith("/")]
    return Given(recipe_files=recipe_files, pools=pools, archives=urls)


async def _pulled(
    build: Build, store: Store, stage: str, name: str, signatures: dict[str, Signature]
) -> Stored:
    """An output in the store, from the engine unless its bytes are there."""
    stored = build.output(stage, name)
    if await run_sync(_has, store, stored):
        signatures |= {sha256: Signature.of(store.blob(sha256).lstat()) for sha256, _ in stored.blobs()}
        return stored
    with store.guard("bringing a result from the engine"):
        (store.root / "work").mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="engine-", dir=store.root / "work") as folder:
            place = Path(folder, "packed")
            file = await build.bring(stage, name)
            assert isinstance(file, dagger.File)
            await file.export(str(place))
            if stored.content.kind is OutputKind.FILES:
                packed, place = place, Path(folder, "unpacked")
                await run_sync(unpack, packed, place)
            found, taken = await run_sync(store.ingest, place, stored.content.kind)
    if found.content != stored.content:
        raise EngineError(
            f"{stage}.{name}: expected {stored.content} from the engine, found {found.content}",
            "run the same command again",
        )
    signatures |= taken
    return found


def _has(store: Store, stored: Stored) -> bool:
    return all(
        store.blob(sha256).is_file() and sha256_file(store.blob(sha256)) == sha256
        for sha256, _ in stored.blobs()
    )
