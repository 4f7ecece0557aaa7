"""The Dagger executor: a plan runs as containers of an engine, one for each stage.

For each stage, as soon as what it needs is there: compute its key (keys.py) from the digests of its inputs,
look the key up among the results that a cache volume keeps, and only when there is none ask for the stage's
container. That is what stops the work at equal output: the engine's own cache knows where a file came from,
not what it holds. Inputs travel as single files, a folder as one tar.

The containers for a stage that runs: find (absent), fetch its inputs, run, keep, find. The last makes the
engine answer the next lookup from its cache, without a container. All are described in engine.py and end in
dagger_runner.py; nothing here knows what an image is, or what Dagger is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from pipelines import dagger_containers as containers
from pipelines.dagger_containers import Given
from pipelines.dagger_runner import ABSENT, DAMAGED
from pipelines.definition import OutputKind, Plan, Stage, StageOutput
from pipelines.engine import Engine, Exec, ExecFailed, Handle
from pipelines.errors import StageError
from pipelines.explain import ASKED, NEVER_RAN, NOTHING_CHANGED, RESULT_GONE, Explanation, changes, shown
from pipelines.keys import Content, Document, document, key
from pipelines.local import CACHED, RAN, StageResult
from pipelines.progress import Reporter
from pipelines.records import Stored, StoredFile
from pipelines.sources import Sources

# Stages side by side when nobody says: the engine's processors are not known here.
JOBS = 4
_KEEP_SECONDS = 120


@dataclass(slots=True)
class Made:
    """A stage's result: what its outputs hold, and those that are at hand as files of the engine."""

    key: str
    outputs: dict[str, Stored]
    handles: dict[str, Handle]


class Build:
    """One run of a plan on an engine."""

    def __init__(
        self,
        plan: Plan,
        sources: Sources,
        engine: Engine,
        given: Given,
        reporter: Reporter,
        logs: Path,
        *,
        jobs: int = JOBS,
        anew: Collection[str] = (),
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._engine = engine
        self._given = given
        self._reporter = reporter
        self._logs = logs
        self._jobs = jobs
        self._anew = frozenset(anew)
        self._made: dict[str, Made] = {}
        self._results: dict[str, StageResult] = {}
        self._last: dict[str, Document] | None = None

    async def run(self, targets: Sequence[str]) -> tuple[StageResult, ...]:
        """Make what `targets` need, so that it can be brought. Raises the first failure as itself."""
        wanted = self._plan.closure(*targets)
        self._known = {stage.name: anyio.Event() for stage in wanted.stages}
        self._slots = anyio.Semaphore(self._jobs)
        self._locks = {stage.name: anyio.Lock() for stage in wanted.stages}
        self._last_lock = anyio.Lock()
        finished: list[StageResult] | None = None
        try:
            async with anyio.create_task_group() as group:
                for stage in wanted.stages:
                    group.start_soon(self._know, stage, group)
            finished = [self._results[stage.name] for stage in wanted.stages]
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        finally:
            self._reporter.close(finished)
        return tuple(finished)

    async def explain(self) -> list[Explanation]:
        """For each stage, in order, whether it would run now and why; runs no stage."""
        self._last_lock = anyio.Lock()
        found: dict[str, Explanation] = {}
        for stage in self._plan.stages:
            waits = sorted({str(need.stage) for need in stage.needs() if need.stage not in self._made})
            if waits:
                why = f"runs only if what {', '.join(waits)} gives comes out changed"
                found[stage.name] = Explanation(stage.name, "waits", (why,))
                continue
            wanted = await self._document(stage)
            made = await self._find(key(wanted))
            if made is None:
                found[stage.name] = Explanation(stage.name, "runs", await self._why(stage, wanted))
            else:
                self._made[stage.name] = made
                found[stage.name] = Explanation(stage.name, CACHED, (NOTHING_CHANGED,))
        return list(found.values())

    def output(self, stage: str, name: str) -> Stored:
        """What an output of the finished run holds."""
        return self._made[stage].outputs[name]

    def outputs(self, stage: str) -> list[str]:
        """The names of a stage's outputs."""
        return list(self._made[stage].outputs)

    async def container_of(self, stage: str) -> Exec:
        """The container of a stage, once what it needs is made."""
        wanted = self._plan.stage(stage)
        await self.run(sorted({need.stage for need in wanted.needs()}))
        return await self._asked(wanted, await self._document(wanted))

    def key(self, stage: str) -> str:
        """The key of a stage of the finished run; empty for one that ran anew."""
        return self._made[stage].key

    async def bring(self, stage: str, name: str) -> Handle:
        """An output of a result as one file of the engine (a folder as a tar), its digest checked."""
        async with self._locks[stage]:
            made = self._made[stage]
            if name not in made.handles:
                try:
                    executed = await self._engine.execute(containers.fetch(made.key, name))
                    made.handles[name] = executed.file(name)
                except ExecFailed as failed:
                    await self._again(self._plan.stage(stage), made, _refusal(failed))
            return made.handles[name]

    async def _know(self, stage: Stage, group: TaskGroup) -> None:
        """The stage's result, found or made."""
        for need in stage.needs():
            await self._known[need.stage].wait()
        wanted = None if stage.name in self._anew else await self._document(stage)
        made = None if wanted is None else await self._find(key(wanted))
        if made is None:
            why = ASKED if wanted is None else shown(await self._why(stage, wanted))
            made = await self._make(stage, wanted, why, group)
        else:
            size = sum(stored.size for stored in made.outputs.values())
            self._settle(StageResult(stage.name, CACHED, 0.0, NOTHING_CHANGED, size))
        self._made[stage.name] = made
        self._known[stage.name].set()

    async def _find(self, name: str) -> Made | None:
        try:
            executed = await self._engine.execute(containers.find(name))
        except ExecFailed as failed:
            if why := _refusal(failed):
                self._reporter.note(f"{why}: removed")
            return None
        record = json.loads(executed.answer)
        return Made(name, _outputs(record["outputs"]), {})

    async def _make(self, stage: Stage, wanted: Document | None, why: str, group: TaskGroup | None) -> Made:
        """Run the stage's container; its result is kept beside what goes on."""
        asked = await self._asked(stage, wanted)
        async with self._slots:
            self._reporter.started(stage.name, why)
            began = time.monotonic()
            try:
                executed = await self._engine.execute(asked)
            except ExecFailed as failed:
                raise self._failure(stage, failed) from None
            seconds = time.monotonic() - began
        answer = json.loads(executed.answer)
        made = Made(
            "" if wanted is None else key(wanted),
            _outputs(answer["outputs"]),
            {output.name: executed.file(output.name) for output in stage.outputs},
        )
        size = sum(stored.size for stored in made.outputs.values())
        self._settle(StageResult(stage.name, RAN, seconds, why, size))
        if wanted is not None:
            record = {**answer, "stage": stage.name, "key": made.key, "document": wanted}
            if group is None:
                await self._keep(stage, made, record)
            else:
                group.start_soon(self._keep, stage, made, record)
        return made

    async def _again(self, stage: Stage, made: Made, why: str) -> None:
        """A result that was found can't be read: run its stage, which must give what its record said."""
        self._reporter.note(f"{why or f'result {made.key} is gone'}: stage {stage.name} runs again")
        new = await self._make(stage, await self._document(stage), why or RESULT_GONE, None)
        for name, stored in made.outputs.items():
            if (found := new.outputs[name].content) != stored.content:
                raise StageError(
                    f"{name}: expected {stored.content}, as its lost result had, found {found}",
                    "run the same command again: it goes on from the new result",
                    stage.name,
                    "changed",
                )
        made.handles.update(new.handles)

    async def _keep(self, stage: Stage, made: Made, record: Mapping[str, Any]) -> None:
        """Put a result into the volume, then look it up, so that the engine knows the answer next time."""
        asked = containers.keep(self._plan.name, stage.name, made.key, record, made.handles)
        try:
            # What took long to make is not lost when another stage fails meanwhile.
            with anyio.move_on_after(_KEEP_SECONDS, shield=True):
                await self._engine.execute(asked)
                await self._find(made.key)
        except ExecFailed as failed:
            said = (failed.stderr.strip().splitlines() or [str(failed)])[-1]
            self._reporter.note(f"stage {stage.name}: its result could not be kept: {said}")

    async def _asked(self, stage: Stage, wanted: Document | None) -> Exec:
        """The stage's container; without a key it runs in any case."""
        inputs: dict[str, tuple[Handle, bool]] = {}
        for name, source in stage.inputs.items():
            if isinstance(source, StageOutput):
                kind = self.output(source.stage, source.output).content.kind
                inputs[name] = (await self.bring(source.stage, source.output), kind is OutputKind.FILES)
        tree = None if stage.tools is None else await self.bring(stage.tools.stage, stage.tools.output)
        program = await run_sync(self._sources.program, stage.program)
        return containers.run(stage, tree, inputs, self._given, program, wanted)

    async def _document(self, stage: Stage) -> Document:
        """The stage's key document from what its inputs hold."""
        inputs: dict[str, Content] = {}
        for name, source in stage.inputs.items():
            if isinstance(source, StageOutput):
                inputs[name] = self.output(source.stage, source.output).content
            else:
                inputs[name] = await run_sync(self._sources.content, source)
        program = await run_sync(self._sources.program, stage.program)
        tree = None if stage.tools is None else self.output(stage.tools.stage, stage.tools.output)
        return document(stage, program, None if tree is None else tree.content.digest, inputs)

    async def _why(self, stage: Stage, wanted: Document) -> tuple[str, ...]:
        """What changed since the stage's newest result; the volume is asked once."""
        async with self._last_lock:
            if self._last is None:
                executed = await self._engine.execute(containers.last(self._plan.name))
                self._last = json.loads(executed.answer)
        before = self._last.get(stage.name)
        return (NEVER_RAN,) if before is None else tuple(changes(before, wanted)) or (RESULT_GONE,)

    def _failure(self, stage: Stage, failed: ExecFailed) -> StageError:
        """The stage's own words, its log shown and kept."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{stage.name}.log"
        log.write_text(failed.stdout)
        self._reporter.failed(stage.name, log, failed.stdout.splitlines()[-20:], None)
        told = [line for line in failed.stderr.splitlines() if line.startswith("@error ")]
        if told:
            said = json.loads(told[-1].removeprefix("@error "))
            return StageError(
                said["what"], said["hint"], stage.name, said["code"], tuple(said["details"]), log
            )
        ended = f"signal {failed.code - 128}" if failed.code > 128 else f"exit code {failed.code}"
        rest = f" ({failed.stderr.strip().splitlines()[-1]})" if failed.stderr.strip() else ""
        return StageError(
            f"its program ended with {ended}, expected exit code 0{rest}",
            f"read its log: {log}",
            stage.name,
            "ended",
            (),
            log,
        )

    def _settle(self, result: StageResult) -> None:
        self._results[result.name] = result
        self._reporter.finished(result)


def _outputs(answered: Mapping[str, Any]) -> dict[str, Stored]:
    return {
        name: Stored(
            Content(OutputKind(output["kind"]), output["digest"]),
            output["size"],
            tuple(StoredFile(*file) for file in output["files"]),
        )
        for name, output in answered.items()
    }


def _refusal(failed: ExecFailed) -> str:
    """Why a lookup failed: empty for absent, the runner's words for damaged. Anything else is no lookup."""
    if failed.code == ABSENT:
        return ""
    if failed.code == DAMAGED:
        return failed.stderr.strip().splitlines()[-1]
    raise failed


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that cancelled the others."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
