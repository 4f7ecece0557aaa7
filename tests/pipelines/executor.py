"""A tiny project for the executor's tests: stages whose programs are a few lines, and a store of its own."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import local
from pipelines.definition import Input, Json, Output, Plan, Program, Stage, StageOutput
from pipelines.progress import Silent
from pipelines.sources import PROJECT, Sources
from pipelines.store import Store

SHARED = ("stages/__init__.py", "stages/shared/__init__.py", "stages/shared/job.py")


class Heard(Silent):
    """A reporter that remembers notes, progress, and what a failure showed."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[str, int, int, str]] = []
        self.tail: list[str] = []
        self.rerun: str | None = None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        self.steps.append((stage, done, total, unit))

    def failed(self, stage: str, log: Path, tail: Sequence[str], rerun: str | None) -> None:
        self.tail = list(tail)
        self.rerun = rerun


@dataclass
class World:
    """A project folder, a recipe folder and a store, all new."""

    root: Path
    store: Store
    externals: Mapping[str, Path] = field(default_factory=dict)
    heard: Heard = field(default_factory=Heard)

    @classmethod
    def new(cls, root: Path, store: Path | None = None) -> World:
        for path in SHARED:
            (root / "project" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / path, root / "project" / path)
        (root / "recipe").mkdir()
        return cls(root, Store(store or root / "store"))

    @property
    def recipe(self) -> Path:
        return self.root / "recipe"

    def sources(self) -> Sources:
        return Sources(recipe=self.recipe, externals=self.externals, project=self.root / "project")

    def write(self, stage: str, body: str) -> None:
        """The stage's program: `body` runs with `job` and everything of stages.shared.job at hand."""
        folder = self.root / "project" / "stages" / stage
        folder.mkdir(exist_ok=True)
        head = "import os, time\nfrom stages.shared.job import *\n\ndef program(job):\n"
        indented = textwrap.indent(textwrap.dedent(body).strip(), "    ")
        (folder / "__main__.py").write_text(f"{head}{indented}\n\nmain(program)\n")

    def stage(
        self,
        name: str,
        body: str,
        *outputs: Output,
        inputs: Mapping[str, Input] | None = None,
        params: Mapping[str, Json] | None = None,
        tools: StageOutput | None = None,
        network: bool = False,
        accelerators: tuple[str, ...] = (),
    ) -> Stage:
        """Write a program and define its stage, with the one output `out` unless others are named."""
        self.write(name, body)
        return Stage(
            name=name,
            program=Program(f"stages.{name}", (*SHARED, f"stages/{name}")),
            source_date_epoch=1,
            outputs=outputs or (Output("out"),),
            params=params or {},
            inputs=inputs or {},
            tools=tools,
            network=network,
            accelerators=accelerators,
        )

    def run(
        self,
        plan: Plan,
        *targets: str,
        anew: Collection[str] = (),
        jobs: int | None = None,
        transport: local.Transport | None = None,
    ) -> local.Results:
        with self.store.use():
            return local.run(
                plan,
                targets or (plan.stages[-1].name,),
                self.sources(),
                self.store,
                transport=transport or local.Transport(),
                reporter=self.heard,
                jobs=jobs,
                anew=anew,
            )

    def read(self, results: local.Results, stage: str, output: str = "out") -> str:
        """The text of an output of kind `file`."""
        return self.store.blob(results.output(stage, output).content.digest).read_text()


def became(results: local.Results) -> dict[str, str]:
    """Each stage's `ran` or `cached`."""
    return {stage.name: stage.result for stage in results.stages}


def numbered_plan(world: World, suffix: str = "") -> Plan:
    """`one` writes a thousand digits, `two` adds one, and `suffix`, which changes its program alone."""
    return Plan("numbered", (
        world.stage("one", 'job.output("out").write_text("1" * 1000)'),
        world.stage(
            "two",
            f'job.output("out").write_text(job.input("in").read_text() + "2{suffix}")',
            inputs={"in": StageOutput("one", "out")},
        ),
    ))  # fmt: skip
