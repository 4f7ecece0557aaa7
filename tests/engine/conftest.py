"""A small project for tests against a real engine: bootstrap stages alone, so that each takes seconds.

`DISK_IMAGE_TEST_BASE` names the bootstrap image where the engine can't reach the pinned one.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TypeVar

import anyio
import dagger
import pytest
from dagger import dag

from pipelines.dagger_containers import Given
from pipelines.dagger_engine import BASE, DaggerEngine, connected
from pipelines.dagger_executor import Build
from pipelines.definition import Json, Output, OutputKind, Plan, Program, Stage, StageOutput
from pipelines.local import StageResult
from pipelines.progress import Plain
from pipelines.sources import PROJECT, Sources
from tests.engine.module_copy import copy_module

T = TypeVar("T")

PROGRAM = """
import json, os, time
from stages.shared.job import Failure, Job, main

def program(job: Job) -> None:
    do = job.params["do"]
    if do == "fail":
        print("about to break")
        raise Failure("it broke", "mend it", code="broken", details=["a", "b"])
    if do == "sleep":
        time.sleep(600)
    if do == "folder":
        (job.output("out") / "pool").mkdir(parents=True)
        (job.output("out") / "pool" / "one").write_text(job.params["content"])
    elif do == "look":
        lines = open("/proc/self/status").read().splitlines()
        status = dict(line.split(":\\t") for line in lines if ":\\t" in line)
        seen = {
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "tmp": os.listdir("/tmp"),
            "uid": os.getuid(),
            "umask": status["Umask"],
            "capabilities": status["CapEff"].strip(),
            "new": status["NoNewPrivs"].strip(),
        }
        job.output("out").write_text(json.dumps(seen))
    else:
        job.output("out").write_text((job.input("folder") / "pool" / "one").read_text())

main(program)
"""


def stage(name: str, do: str, reads: str = "", kind: OutputKind = OutputKind.FILE, **params: Json) -> Stage:
    """A bootstrap stage of the small project."""
    return Stage(
        name=name,
        program=Program(
            "stages.small",
            ("stages/__init__.py", "stages/shared/__init__.py", "stages/shared/job.py", "stages/small"),
        ),
        source_date_epoch=7,
        outputs=(Output("out", kind),),
        params={"do": do, **params},
        inputs={"folder": StageOutput(reads, "out")} if reads else {},
    )


@dataclass
class World:
    """Plans run on the engine from a project of their own."""

    project: Path
    # In every plan, so that no earlier run's results are found.
    salt: str = field(default_factory=lambda: secrets.token_hex(8))
    said: StringIO = field(default_factory=StringIO)

    def engine(self) -> DaggerEngine:
        """The engine, with programs from this project and the runner from the real one."""

        def project(paths: tuple[str, ...]) -> dagger.Directory:
            root = PROJECT if paths[0].startswith("pipelines/") else self.project
            return dag.host().directory(str(root), include=list(paths))

        return DaggerEngine(os.environ.get("DISK_IMAGE_TEST_BASE", BASE), project)

    def build(self, plan: Plan) -> Build:
        """A run of a plan."""
        sources = Sources(project=self.project)
        return Build(plan, sources, self.engine(), Given(), Plain(self.said), self.project / "logs")

    def run(self, plan: Plan, target: str) -> tuple[Build, dict[str, str]]:
        """Run; what became of each stage."""
        build = self.build(plan)

        async def main() -> tuple[StageResult, ...]:
            return await build.run((target,))

        return build, {result.name: result.result for result in self.with_engine(main)}

    def with_engine(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run `main` in a session."""

        async def session() -> T:
            async with connected():
                return await main()

        return anyio.run(session)


@pytest.fixture
def world(tmp_path: Path) -> World:
    for path in ("stages/__init__.py", "stages/shared/__init__.py", "stages/shared/job.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / path, tmp_path / path)
    (tmp_path / "stages" / "small").mkdir()
    (tmp_path / "stages" / "small" / "__init__.py").touch()
    (tmp_path / "stages" / "small" / "__main__.py").write_text(PROGRAM)
    return World(tmp_path)


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the module's copy."""
    folder = tmp_path_factory.mktemp("module")
    copy_module(folder)
    return folder
