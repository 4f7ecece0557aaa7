"""The local executor's scheduler: every stage starts when its needs are there, side by side, a bounded
number at once.

A stage's digests are known before its blobs are needed: what is cached costs nothing, and an intermediate
output is looked at only when a stage that runs reads it. One found damaged is removed, and the stage that
made it runs again.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from shlex import quote
from typing import IO

import anyio
from anyio.to_thread import run_sync

from pipelines import job_folder, sandbox, trees
from pipelines.definition import Plan, Stage, StageOutput
from pipelines.errors import DiskImageError, StageError, StoreError
from pipelines.explain import ASKED, NOTHING_CHANGED, shown, why_runs
from pipelines.keys import Content, Document, key
from pipelines.local import (
    CACHED,
    RAN,
    Results,
    StageResult,
    Transport,
    contents_of,
    document_of,
    remember,
)
from pipelines.process import Outcome, execute
from pipelines.progress import Reporter
from pipelines.records import Record, Signature, Stored
from pipelines.scratch import Work, scratch_base, sweep, work_folder
from pipelines.sources import Sources
from pipelines.store import Last, Store

_LOCK_INTERVAL = 0.1
_FULL_DISK = 1 << 20


class Schedule:
    """One run of a plan."""

    def __init__(
        self,
        plan: Plan,
        sources: Sources,
        store: Store,
        transport: Transport,
        reporter: Reporter,
        jobs: int | None,
        anew: Collection[str],
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._store = store
        self._transport = transport
        self._reporter = reporter
        self._jobs = jobs or os.cpu_count() or 1
        self._anew = set(anew)
        self._records: dict[str, Record] = {}
        self._results: dict[str, StageResult] = {}
        self._checked: set[StageOutput] = set()
        self._failed = False

    def run(self, targets: Sequence[str]) -> Results:
        """Run until the targets' outputs are in the store. Raises the first failure as itself, not in a
        group.
        """
        sweep(self._store)
        self._base = scratch_base(self._store)
        finished: list[StageResult] | None = None
        try:
            anyio.run(self._main, targets)
            finished = [self._results[stage.name] for stage in self._plan.stages]
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            self._reporter.close(finished)
        return Results(tuple(finished), self._records)

    async def _main(self, targets: Sequence[str]) -> None:
        self._slots = anyio.Semaphore(self._jobs)
        self._known_locks = {stage.name: anyio.Lock() for stage in self._plan.stages}
        self._tree_locks = {
            stage.tools: anyio.Lock() for stage in self._plan.stages if stage.tools is not None
        }
        self._present_locks = {stage.name: anyio.Lock() for stage in self._plan.stages}
        async with anyio.create_task_group() as group:
            for stage in self._plan.stages:
                group.start_soon(self._known, stage)
        # In order, and only now: most targets just ran.
        for target in targets:
            stage = self._plan.stage(target)
            await self._present(stage, [output.name for output in stage.outputs], read=False)

    async def _known(self, stage: Stage) -> Record:
        """The stage's result, found or made."""
        async with self._known_locks[stage.name]:
            if stage.name in self._records:
                return self._records[stage.name]
            async with anyio.create_task_group() as group:
                for name in {need.stage for need in stage.needs()}:
                    group.start_soon(self._known, self._plan.stage(name))
            document = await self._document(stage)
            record = None if stage.name in self._anew else self._store.result(key(document))
            if record is None:
                return await self._make(stage, None)
            return self._cached(stage, record, self._why_cached(stage))

    async def _present(self, stage: Stage, outputs: Collection[str], *, read: bool) -> None:
        """Make sure that outputs are in the store as recorded; `read` also hashes them."""
        async with self._present_locks[stage.name]:
            record = await self._known(stage)
            wanted = {
                name: record.outputs[name]
                for name in outputs
                if StageOutput(stage.name, name) not in self._checked
            }
            damages = (
                await run_sync(lambda: self._store.damages(record, wanted, read=read)) if wanted else []
            )
            if damages:
                for damage in damages:
                    self._reporter.note(f"store: {damage}: removed, stage {stage.name} runs again")
                    self._store.discard(damage.sha256)
                await self._make(stage, "; ".join(map(str, damages)))
            self._checked.update(StageOutput(stage.name, name) for name in outputs)

    async def _make(self, stage: Stage, repairing: str | None) -> Record:
        """Run the stage when its inputs are there, unless another process does it first."""
        while True:
            document = await self._document(stage)
            tree = await self._inputs(stage)
            if await self._document(stage) == document:
                break  # else an input that had to be made again came out different
        name = key(document)
        async with self._stage_lock(stage, name):
            forced = repairing is not None or stage.name in self._anew
            if not forced and (found := self._store.result(name)) is not None:
                return self._cached(stage, found, "another build ran it meanwhile")
            why = repairing or (
                ASKED if forced else shown(why_runs(self._store, self._plan.name, stage.name, document))
            )
            last = self._store.last(self._plan.name, stage.name)
            before = self._store.result(last.key) if last else None
            async with self._slots:
                if self._failed:
                    await anyio.sleep_forever()  # until the failure has cancelled this one too
                try:
                    record = await self._run(stage, document, tree, why)
                except BaseException:
                    self._failed = True
                    raise
            same = before is not None and record.same_outputs(before)
            self._store.save(record)
            self._store.set_last(self._plan.name, stage.name, Last(name, same and record != before))
        result = StageResult(
            stage.name, RAN, record.seconds, f"{why}; same output" if same else why, record.size
        )
        self._settle(record, result)
        return record

    async def _inputs(self, stage: Stage) -> Path | None:
        """Bring every input of a stage that runs into the store, hashed; gives its unpacked tools tree."""
        wanted: dict[str, set[str]] = {}
        for need in stage.inputs.values():
            if isinstance(need, StageOutput):
                wanted.setdefault(need.stage, set()).add(need.output)
        async with anyio.create_task_group() as group:
            for name, outputs in wanted.items():
                group.start_soon(partial(self._present, self._plan.stage(name), outputs, read=True))
            if stage.tools is not None:
                group.start_soon(self._tree, stage.tools)
        if stage.tools is None:
            return None
        return trees.tree_path(self._store, self._digest(stage.tools))

    async def _tree(self, tools: StageOutput) -> None:
        """Unpack a tools tree; its tar is needed only where it isn't unpacked yet."""
        async with self._tree_locks[tools]:
            digest = self._digest(tools)
            if not trees.tree_path(self._store, digest).is_dir():
                await self._present(self._plan.stage(tools.stage), [tools.output], read=True)
                await run_sync(trees.unpack, self._store, self._digest(tools))

    async def _run(self, stage: Stage, document: Document, tree: Path | None, why: str) -> Record:
        """Run a stage's program and take its outputs into the store."""
        self._reporter.started(stage.name, why)
        began = time.monotonic()
        log = self._store.open_log(self._plan.name, stage.name)
        with log:
            async with self._work(stage) as work:
                folder = work.folder / "stage"
                await run_sync(self._prepare, stage, document, folder)
                with self._store.guard(f"running stage {stage.name}"):
                    outcome = await self._execute(stage, tree, work, folder, log)
                if outcome.returncode != 0 or outcome.error is not None:
                    raise self._failure(stage, work, outcome)
                outputs, signatures = await run_sync(self._take, stage, folder / "out")
        return Record(
            stage.name, key(document), document, outputs, signatures, round(time.monotonic() - began, 3)
        )

    def _prepare(self, stage: Stage, document: Document, folder: Path) -> None:
        stored = {
            name: self._records[wanted.stage].outputs[wanted.output]
            for name, wanted in stage.inputs.items()
            if isinstance(wanted, StageOutput)
        }
        transport: dict[str, object] | None = None
        if stage.network:
            self._store.partial.mkdir(parents=True, exist_ok=True)
            transport = {
                "archives": list(self._transport.archives),
                "pools": [str(pool.absolute()) for pool in self._transport.pools],
                "store": str(self._store.blobs),
                "partial": str(self._store.partial),
            }
        job_folder.prepare(folder, stage, document, stored, self._sources, self._store, transport)

    async def _execute(
        self, stage: Stage, tree: Path | None, work: Work, folder: Path, log: IO[bytes]
    ) -> Outcome:
        def told(done: int, total: int, unit: str) -> None:
            self._reporter.progress(stage.name, done, total, unit)

        if tree is None:
            environment = sandbox.stage_environment(stage.source_date_epoch)
            if stage.network:
                environment |= job_folder.transport_environment()
            argv = sandbox.program_argv(sys.executable, stage.program.module, str(folder))
            return await execute(argv, environment, folder / "program", log, told)
        container = sandbox.container(
            name=work.name,
            bundle=work.folder / "bundle",
            tree=tree,
            stage=folder,
            scratch=work.scratch,
            caches=job_folder.accelerators(stage, self._store),
            module=stage.program.module,
            source_date_epoch=stage.source_date_epoch,
        )
        return await execute(container.argv, container.environment, work.folder, log, told, container.delete)

    def _take(self, stage: Stage, out: Path) -> tuple[dict[str, Stored], dict[str, Signature]]:
        outputs: dict[str, Stored] = {}
        signatures: dict[str, Signature] = {}
        expected = [output.name for output in stage.outputs]
        if unexpected := sorted(set(os.listdir(out)) - set(expected)):
            raise self._wrong_output(stage, f"{unexpected[0]}: expected only {', '.join(expected)}")
        for output in stage.outputs:
            try:
                outputs[output.name], taken = self._store.ingest(out / output.name, output.kind)
            except ValueError as error:
                raise self._wrong_output(stage, str(error)) from None
            signatures |= taken
        return outputs, signatures

    def _wrong_output(self, stage: Stage, what: str) -> StageError:
        log = self._store.log_path(self._plan.name, stage.name)
        return StageError(
            f"output {what}", f"correct the program {stage.program.module}", stage.name, "output", (), log
        )

    def _failure(self, stage: Stage, work: Work, outcome: Outcome) -> DiskImageError:
        full = [
            folder
            for folder in (self._store.root, work.scratch)
            if shutil.disk_usage(folder).free < _FULL_DISK
        ]
        if full and full[0] == self._store.root:
            return self._store.full(f"running stage {stage.name}")
        if full:
            return StoreError(
                f"{work.scratch.parent.parent}: no space left for the scratch files of stage {stage.name}",
                "free some space there, or set TMPDIR to a folder on a larger disk",
            )
        log = self._store.log_path(self._plan.name, stage.name)
        rerun = None
        if self._sources.recipe is not None:
            rerun = f"disk-image build {quote(str(self._sources.recipe))} --only {stage.name}"
        self._reporter.failed(stage.name, log, outcome.tail, rerun)
        if (told := outcome.error) is not None:
            return StageError(told.what, told.hint, stage.name, told.code, told.details, log)
        code = outcome.returncode
        ended = (
            f"signal {-code}" if code < 0 else f"signal {code - 128}" if code > 128 else f"exit code {code}"
        )
        return StageError(
            f"its program ended with {ended}, expected exit code 0",
            f"read its log: {log}",
            stage.name,
            "ended",
            (),
            log,
        )

    async def _document(self, stage: Stage) -> Document:
        contents: dict[StageOutput, Content] = {}
        for need in stage.needs():
            contents |= contents_of(self._records[need.stage])
        return await run_sync(document_of, stage, self._sources, contents)

    def _digest(self, output: StageOutput) -> str:
        return self._records[output.stage].outputs[output.output].content.digest

    def _cached(self, stage: Stage, record: Record, why: str) -> Record:
        remember(self._store, self._plan.name, record)
        self._settle(record, StageResult(stage.name, CACHED, 0.0, why, record.size))
        return record

    def _settle(self, record: Record, result: StageResult) -> None:
        self._records[record.stage] = record
        self._results[record.stage] = result
        self._reporter.finished(result)

    def _why_cached(self, stage: Stage) -> str:
        ran = sorted({need.stage for need in stage.needs() if self._results[need.stage].result == RAN})
        return f"{', '.join(ran)} ran, but nothing that this stage reads changed" if ran else NOTHING_CHANGED

    @asynccontextmanager
    async def _stage_lock(self, stage: Stage, name: str) -> AsyncIterator[None]:
        lock = self._store.lock(name)
        if lock is None:
            self._reporter.note(f"stage {stage.name}: another build runs it; waiting for its result")
        while lock is None:
            await anyio.sleep(_LOCK_INTERVAL)
            lock = self._store.lock(name)
        with lock:
            yield

    @asynccontextmanager
    async def _work(self, stage: Stage) -> AsyncIterator[Work]:
        # Making and removing can take seconds; the other stages' output is read meanwhile.
        manager = work_folder(self._store, stage.name, self._base)
        work = await run_sync(manager.__enter__)
        try:
            yield work
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(manager.__exit__, None, None, None)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that cancelled the others."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
