"""The boot tests' own plan: the quick recipe's kernel and initramfs, and a root that tries itself out."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.commands.build import transport
from pipelines.commands.request import load_tools_lock
from pipelines.definition import Json, Output, Plan, Program, Stage, StageOutput
from pipelines.local import run
from pipelines.lock import load_lock
from pipelines.plan import boot_plan, plan
from pipelines.progress import reporter
from pipelines.recipe import host_arch, load_recipe
from pipelines.sources import Sources
from pipelines.store import Store
from tests.system.command import ROOT, disk_image

RECIPE = ROOT / "recipes" / "quick"
TAR = ("stages/shared/canonical_tar.py", "stages/shared/tar_header.py")


@dataclass(frozen=True)
class Ended:
    """How a guest ended, and its console."""

    verdict: Mapping[str, Any]
    console: str


@dataclass(frozen=True)
class Locks:
    """The quick recipe's plan, the boot check's, and the store."""

    quick: Plan
    boot: Plan
    store: Store

    def tools(self) -> Iterator[Stage]:
        """The stages that make the tools tree with QEMU."""
        return (stage for stage in self.boot.stages if stage.name.endswith("tools-boot"))


@dataclass(frozen=True)
class Laboratory:
    """Boots guests from changed disks. `root` and `other` name the stages with the root's tree and with
    another metadata image.
    """

    plan: Plan
    root: str
    other: str
    store: Store

    def digest(self, stage: str = "composefs") -> str:
        """The fs-verity digest of a root's metadata image."""
        (digest,) = self._outputs(self.plan, stage, "digest")
        return digest.strip()

    def boot(
        self,
        change: str = "nothing",
        *,
        words: Mapping[str, str] | None = None,
        reached: str = "trial: done",
        **params: Json,
    ) -> Ended:
        """Boot with `change` made to the disk (see trial_boot.py), `words` replaced in the command line."""
        settings: dict[str, Json] = {
            "change": change,
            "words": dict(words or {}),
            "reached": reached,
            **params,
        }
        settings |= {"memory_mib": 1024, "timeout_seconds": 120}
        stage = _stage(
            "trial-boot",
            "tools-boot",
            {
                "layout": StageOutput("image", "layout"),
                "tree": StageOutput(self.root, "tree"),
                "other": StageOutput(self.other, "metadata"),
            },
            settings,
            ("verdict", "console"),
            (
                "stages/boot",
                "stages/shared/fsverity.py",
                "stages/shared/packs.py",
                *TAR,
            ),
        )
        trial = Plan(self.plan.name, (*self.plan.stages, stage))
        verdict, console = self._outputs(trial, stage.name, "verdict", "console")
        return Ended(json.loads(verdict), console)

    def _outputs(self, wanted: Plan, stage: str, *outputs: str) -> tuple[str, ...]:
        with self.store.use():
            results = run(
                wanted, (stage,), Sources(recipe=RECIPE), self.store,
                transport=transport(Namespace(archive=[], pool=[])), reporter=reporter(),
                anew=("trial-boot",) if stage == "trial-boot" else (),
            )  # fmt: skip
            paths = [self.store.blob(results.output(stage, output).content.digest) for output in outputs]
            return tuple(path.read_text(errors="replace") for path in paths)


def _stage(
    name: str,
    tools: str,
    inputs: Mapping[str, StageOutput],
    params: Mapping[str, Json],
    outputs: tuple[str, ...],
    paths: tuple[str, ...],
) -> Stage:
    module = name.replace("-", "_").removesuffix("_other")
    job = ("stages/__init__.py", "stages/shared/__init__.py", "stages/shared/job.py")
    return Stage(
        name=name,
        program=Program(f"tests.boot.{module}", (*job, *paths, f"tests/boot/{module}.py")),
        source_date_epoch=1767225600,
        tools=StageOutput(tools, "tree"),
        inputs=inputs,
        params=params,
        outputs=tuple(Output(output) for output in outputs),
    )


def _root(name: str, variant: str) -> Stage:
    tree = {"tree": StageOutput("tools-image", "tree")}
    return _stage(name, "tools-image", tree, {"variant": variant}, ("tree",), TAR)


@pytest.fixture(scope="session")
def locks() -> Locks:
    """The quick recipe's locks as the archive can serve them, and a store with what it gave."""
    store = Path(os.environ.get("DISK_IMAGE_TEST_STORE", ROOT / "out" / "test-store"))
    store.mkdir(parents=True, exist_ok=True)
    done = disk_image("build", RECIPE, "--target", "initramfs", "--store", store, "--relock", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    tools = load_tools_lock(Path(told["tools_lock"]), host_arch())
    lock = load_lock(Path(told["lock"]), f"disk-image lock {RECIPE}")
    return Locks(plan(load_recipe(RECIPE), lock, tools), boot_plan(tools, host_arch()), Store(store))


@pytest.fixture(scope="session")
def laboratory(locks: Locks) -> Laboratory:
    """A root that tries itself out, and another one to be mistaken for it."""
    needed = locks.quick.closure("initramfs", "tools-image").stages
    composefs, image = locks.quick.stage("composefs"), locks.quick.stage("image")
    trial = {"tree": StageOutput("trial-root", "tree")}
    stages = (
        *needed,
        *locks.tools(),
        _root("trial-root", "one"),
        _root("trial-root-other", "another"),
        replace(composefs, inputs={**composefs.inputs, **trial}),
        replace(composefs, name="composefs-other", inputs={"tree": StageOutput("trial-root-other", "tree")}),
        replace(image, inputs={**image.inputs, **trial}),
    )
    return Laboratory(Plan("boot-tests", stages), "trial-root", "composefs-other", locks.store)


@pytest.fixture(scope="session")
def quick(locks: Locks) -> Laboratory:
    """The quick recipe's own image."""
    return Laboratory(
        Plan("boot-tests-quick", (*locks.quick.stages, *locks.tools())), "rootfs", "composefs", locks.store
    )
