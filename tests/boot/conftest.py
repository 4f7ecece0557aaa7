"""The boot tests' own plan: the quick recipe's kernel and initramfs, and a root that tries itself out."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Mapping
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


@dataclass(frozen=True)
class Ended:
    """How a guest ended, and its console."""

    verdict: Mapping[str, Any]
    console: str


@dataclass(frozen=True)
class Laboratory:
    """Boots guests from changed disks."""

    plan: Plan
    sources: Sources
    store: Store

    def digest(self, stage: str = "composefs") -> str:
        """The fs-verity digest of a root's metadata image."""
        return self._output(self.plan, stage, "digest").strip()

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
            {name: StageOutput(*source) for name, source in _GUEST.items()},
            settings,
            ("verdict", "console"),
            (
                "stages/boot",
                "stages/shared/fsverity.py",
                "stages/shared/packs.py",
                "stages/shared/canonical_tar.py",
            ),
        )
        trial = Plan(self.plan.name, (*self.plan.stages, stage))
        verdict = json.loads(self._output(trial, stage.name, "verdict"))
        return Ended(verdict, self._output(trial, stage.name, "console"))

    def _output(self, wanted: Plan, stage: str, output: str) -> str:
        with self.store.use():
            results = run(
                wanted, (stage,), self.sources, self.store,
                transport=transport(Namespace(archive=[], pool=[])), reporter=reporter(),
                anew=("trial-boot",) if stage == "trial-boot" else (),
            )  # fmt: skip
            content = self.store.blob(results.output(stage, output).content.digest).read_bytes()
        return content.decode("utf-8", "replace")


_GUEST = {
    "layout": ("image", "layout"),
    "tree": ("trial-root", "tree"),
    "other": ("composefs-other", "metadata"),
}


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
    return _stage(
        name, "tools-image", tree, {"variant": variant}, ("tree",), ("stages/shared/canonical_tar.py",)
    )


@pytest.fixture(scope="session")
def laboratory() -> Laboratory:
    """The quick recipe's kernel and initramfs; two trial roots, the second to be mistaken for the first."""
    store = Path(os.environ.get("DISK_IMAGE_TEST_STORE", ROOT / "out" / "test-store"))
    store.mkdir(parents=True, exist_ok=True)
    done = disk_image("build", RECIPE, "--target", "initramfs", "--store", store, "--relock", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    tools = load_tools_lock(Path(told["tools_lock"]), host_arch())
    quick = plan(load_recipe(RECIPE), load_lock(Path(told["lock"]), f"disk-image lock {RECIPE}"), tools)
    taken = tuple(
        stage for stage in quick.closure("initramfs", "composefs").stages if stage.name not in _REPLACED
    )
    composefs, image = quick.stage("composefs"), quick.stage("image")
    trial = {"tree": StageOutput("trial-root", "tree")}
    stages = (
        *taken,
        *(stage for stage in boot_plan(tools, host_arch()).stages if stage.name.endswith("tools-boot")),
        _root("trial-root", "one"),
        _root("trial-root-other", "another"),
        replace(composefs, inputs={**composefs.inputs, **trial}),
        replace(composefs, name="composefs-other", inputs={"tree": StageOutput("trial-root-other", "tree")}),
        replace(image, inputs={**image.inputs, **trial}),
    )
    return Laboratory(Plan("boot-tests", stages), Sources(recipe=RECIPE), Store(store))


_REPLACED = {
    "mirror-root",
    "mirror-tools-packages",
    "tools-packages",
    "packages",
    "rootfs",
    "composefs",
    "image",
}
