"""The containers that the Dagger executor asks for: each as data, all ending in dagger_runner.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.definition import External, Plan, RecipeFile, Stage, StageOutput
from pipelines.engine import Exec, Handle
from pipelines.keys import Document
from pipelines.sandbox import stage_environment

RESULTS, POOL = "disk-image-results", "disk-image-pool"
_ACCELERATOR = "disk-image-accelerator-"
_KEPT = {"/results": RESULTS}

_RUNNER = (
    "pipelines/__init__.py",
    "pipelines/definition.py",
    "pipelines/keys.py",
    "pipelines/dagger_runner.py",
    "stages/__init__.py",
    "stages/shared/__init__.py",
    "stages/shared/job.py",
    "stages/shared/canonical_tar.py",
    "stages/shared/tar_header.py",
)


@dataclass(frozen=True, slots=True)
class Given:
    """What the caller hands in: recipe files by path, externals by name, .deb pools, and archives' URLs."""

    recipe_files: Mapping[str, Handle] = field(default_factory=dict)
    externals: Mapping[str, Handle] = field(default_factory=dict)
    pools: Sequence[Handle] = ()
    archives: Sequence[str] = ()


def find(key: str) -> Exec:
    """Look a result up. Only the key is in it, so that the engine's cached answer serves every machine."""
    return _exec(("find", key), volumes=_KEPT)


def fetch(key: str, output: str) -> Exec:
    """Bring one output of a result."""
    return _exec(("fetch", key, output), volumes=_KEPT)


def last(plan: str) -> Exec:
    """Read the newest key documents of a plan's stages."""
    return _exec(("last", plan), volumes=_KEPT, fresh=True)


def keep(plan: str, stage: str, key: str, record: Mapping[str, Any], outputs: Mapping[str, Handle]) -> Exec:
    """Put a result into the volume."""
    return _exec(
        ("keep", plan, stage, key),
        files={f"/kept/{name}": handle for name, handle in outputs.items()},
        texts={"/kept/record.json": json.dumps(record)},
        volumes=_KEPT,
        fresh=True,
    )


def unpack(packed: Handle) -> Exec:
    """Unpack a folder that travelled as a tar; it is `folder` of what is given back."""
    return _exec(("unpack",), files={"/packed.tar": packed})


def run(
    stage: Stage,
    tree: Handle | None,
    inputs: Mapping[str, tuple[Handle, bool]],
    given: Given,
    program: Mapping[str, str],
    wanted: Document | None,
) -> Exec:
    """The stage's own container. `inputs` has its stage outputs, each with whether it is a folder's tar.

    `program` maps its files to their sha256; `wanted` is the key's document, None for a run that has no key.
    Inside, the sources are compared with both, so that nothing is built under a wrong key.
    """
    files: dict[str, Handle] = {}
    folders: dict[str, Handle] = {}
    unpacked = [name for name, (_, packed) in inputs.items() if packed]
    sources = {f"program/{path}": sha256 for path, sha256 in program.items()}
    contents: Any = {} if wanted is None else wanted["inputs"]
    for name, source in stage.inputs.items():
        if isinstance(source, StageOutput):
            files[f"/transfer/{name}.tar" if name in unpacked else f"/stage/in/{name}"] = inputs[name][0]
        elif isinstance(source, External):
            folders[f"/stage/in/{name}"] = given.externals[source.name]
        else:
            files[f"/stage/in/{name}"] = given.recipe_files[source.path]
            if name in contents:
                sources[f"in/{name}"] = contents[name].rpartition(":")[2]
    order = {
        "module": stage.program.module,
        "environment": stage_environment(stage.source_date_epoch),
        "outputs": {output.name: output.kind.value for output in stage.outputs},
        "folders": unpacked,
        "sources": sources,
        "network": stage.network,
    }
    job = {
        "name": stage.name,
        "source_date_epoch": stage.source_date_epoch,
        "params": stage.params,
        "accelerators": list(stage.accelerators),
    }
    texts = {"/order.json": json.dumps(order), "/stage/job.json": json.dumps(job)}
    volumes = {f"/stage/cache/{name}": _ACCELERATOR + name for name in stage.accelerators}
    if stage.network:
        pools = {f"/pools/{index}": pool for index, pool in enumerate(given.pools)}
        folders |= pools
        volumes["/pool"] = POOL
        transport = {
            "archives": list(given.archives),
            "pools": [*pools, "/pool"],
            "store": "/pool/blobs",
            "partial": "/pool/partial",
        }
        texts["/stage/transport.json"] = json.dumps(transport)
    return _exec(
        ("run", stage.name),
        tree=tree, files=files, folders=folders, texts=texts, volumes=volumes,
        fresh=wanted is None,
        program=tuple(program),
    )  # fmt: skip


def recipe_paths(plan: Plan) -> list[str]:
    """Every recipe file that a plan reads, by its path below the recipe's folder."""
    return sorted(
        {
            wanted.path
            for stage in plan.stages
            for wanted in stage.inputs.values()
            if isinstance(wanted, RecipeFile)
        }
    )


def pool_files(plan: Plan) -> list[str]:
    """Every name under which stages/mirror finds a plan's locked files in a pool."""
    files: list[Any] = []
    for stage in plan.stages:
        wanted = stage.params.get("files")
        files += wanted if stage.network and isinstance(wanted, list) else []
    names: set[str] = set()
    for file in files:
        pool_path, sha256 = file["pool_path"], file["sha256"]
        epoch = f"{file['name']}_{file['version'].replace(':', '%3a')}_{file['arch']}.deb"
        names |= {pool_path, pool_path.rpartition("/")[2], epoch}
        names |= {sha256, f"{sha256[:2]}/{sha256[2:]}", f"blobs/sha256/{sha256}"}
    return sorted(names)


def _exec(command: tuple[str, ...], *, program: tuple[str, ...] = (), **given: Any) -> Exec:
    python = "python3" if given.get("tree") is None else "/usr/bin/python3"
    argv = (python, "-B", "-s", "-m", "pipelines.dagger_runner", *command)
    programs = {"/runner": _RUNNER, **({"/stage/program": program} if program else {})}
    return Exec(argv, programs=programs, **given)
