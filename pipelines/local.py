"""The local executor: a plan runs on this machine, each stage in its sandbox, over the content-addressed
store.

`cached` is the quick way to learn that there is nothing to do; `run` does what is left to do. Nothing here
knows what an image is. The scheduler and its libraries are loaded only when something runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.definition import Plan, Stage, StageOutput
from pipelines.explain import NOTHING_CHANGED, why_runs
from pipelines.keys import Content, Document, document, key
from pipelines.records import Record, Stored
from pipelines.sources import Sources
from pipelines.store import Last, Store

if TYPE_CHECKING:
    from pipelines.progress import Reporter

RAN, CACHED = "ran", "cached"


@dataclass(frozen=True, slots=True)
class Transport:
    """How network stages reach the locked files: archive roots (URL or folder) and pools, tried in order.

    In no key: a file's sha256 decides, wherever it came from.
    """

    archives: tuple[str, ...] = ()
    pools: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class StageResult:
    """What became of one stage: `result` is ran or cached, the outputs' size in bytes, the wall time in
    seconds.
    """

    name: str
    result: str
    seconds: float
    why: str
    size: int

    def to_json(self) -> dict[str, str | float | int]:
        """The stage's entry of `build --json`."""
        return {
            "name": self.name,
            "result": self.result,
            "seconds": round(self.seconds, 3),
            "why": self.why,
            "size": self.size,
        }


@dataclass(frozen=True, slots=True)
class Results:
    """A finished run: each stage of the targets' closure in plan order, and where its outputs are."""

    stages: tuple[StageResult, ...]
    records: Mapping[str, Record]

    def output(self, stage: str, name: str) -> Stored:
        """An output in the store; KeyError when the run had no such stage or output."""
        return self.records[stage].outputs[name]


@dataclass(frozen=True, slots=True)
class Pending:
    """The first stage that must run, and why."""

    stage: str
    why: tuple[str, ...] = field(default=())


def cached(plan: Plan, targets: Sequence[str], sources: Sources, store: Store) -> Results | Pending:
    """The results when no stage has to run, else the first that has to.

    Every source is read and hashed, every key computed, and the targets' blobs are compared with their
    records. Writes nothing but the time of use. Raises RecipeError and UsageError for sources that can't be
    read.
    """
    wanted = plan.closure(*targets)
    results: list[StageResult] = []
    records: dict[str, Record] = {}
    for stage, current_document, record in current(wanted, sources, store):
        if current_document is None or record is None:
            why = why_runs(store, plan.name, stage.name, current_document) if current_document else ()
            return Pending(stage.name, why)
        records[stage.name] = record
        results.append(StageResult(stage.name, CACHED, 0.0, NOTHING_CHANGED, record.size))
    for target in targets:
        if damages := store.damages(records[target], read=False):
            return Pending(target, tuple(map(str, damages)))
    for record in records.values():
        remember(store, plan.name, record)
    return Results(tuple(results), records)


def run(
    plan: Plan,
    targets: Sequence[str],
    sources: Sources,
    store: Store,
    *,
    transport: Transport,
    reporter: Reporter,
    jobs: int | None = None,
    anew: Collection[str] = (),
) -> Results:
    """Run what has no result yet of all that `targets` need; the targets' outputs are in the store
    afterwards.

    At most `jobs` programs (the number of processors when None) run side by side. `anew` names stages that
    run even when they have a result. The caller holds `store.use()`. On a failure, Ctrl-C included,
    everything that runs is killed, and nothing finished is lost. Raises StageError, StoreError, RecipeError,
    UsageError, or DiskImageError when the machine lacks a program.
    """
    from pipelines.schedule import Schedule

    schedule = Schedule(plan.closure(*targets), sources, store, transport, reporter, jobs, frozenset(anew))
    return schedule.run(targets)


def current(
    plan: Plan, sources: Sources, store: Store
) -> Iterator[tuple[Stage, Document | None, Record | None]]:
    """Each stage with its key's document and stored result; no document when an earlier stage has no result
    yet.
    """
    contents: dict[StageOutput, Content] = {}
    for stage in plan.stages:
        if not all(need in contents for need in stage.needs()):
            yield stage, None, None
            continue
        found = document_of(stage, sources, contents)
        record = store.result(key(found))
        if record is not None:
            contents.update(contents_of(record))
        yield stage, found, record


def document_of(stage: Stage, sources: Sources, contents: Mapping[StageOutput, Content]) -> Document:
    """The stage's key document from what its inputs hold now."""
    return document(
        stage,
        sources.program(stage.program),
        None if stage.tools is None else contents[stage.tools].digest,
        {
            name: contents[wanted] if isinstance(wanted, StageOutput) else sources.content(wanted)
            for name, wanted in stage.inputs.items()
        },
    )


def contents_of(record: Record) -> dict[StageOutput, Content]:
    """What a result's outputs hold."""
    return {StageOutput(record.stage, name): stored.content for name, stored in record.outputs.items()}


def remember(store: Store, plan: str, record: Record) -> None:
    """Note a result's use, and that it is its stage's newest."""
    store.touch(record.key)
    last = store.last(plan, record.stage)
    if last is None or last.key != record.key:
        store.set_last(plan, record.stage, Last(record.key))
