"""A stage's job folder: what its program finds, as stages/shared/job.py describes it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.definition import External, RecipeFile, Stage
from pipelines.keys import Document
from pipelines.records import Stored
from pipelines.sources import Sources, copy_checked
from pipelines.store import Store

# Network stages reach their archives through these; no other variable of the caller passes.
TRANSPORT_VARIABLES = (
    "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip


def prepare(
    folder: Path,
    stage: Stage,
    key: Document,
    stored: Mapping[str, Stored],
    sources: Sources,
    store: Store,
    transport: Mapping[str, Any] | None,
) -> None:
    """Make `folder` the job folder of `stage`; `stored` has its stage-output inputs, `transport` is for
    network stages.

    Raises UsageError when a source is no longer what the key was computed from.
    """
    with store.guard(f"preparing stage {stage.name}"):
        for name in ("in", "out", "cache", "program"):
            (folder / name).mkdir(parents=True)
        for name, accelerator in accelerators(stage, store).items():
            if stage.tools is None:
                (folder / "cache" / name).symlink_to(accelerator)
            else:
                (folder / "cache" / name).mkdir()  # where the sandbox mounts it
        _copy_program(folder / "program", key, sources)
        for name, wanted in stage.inputs.items():
            target = folder / "in" / name
            if isinstance(wanted, RecipeFile):
                copy_checked(sources.recipe_file(wanted), target, _digest(key, name))
            elif isinstance(wanted, External):
                sources.copy_external(wanted, target, _digest(key, name))
            else:
                store.link(stored[name], target)
        told = {
            "name": stage.name,
            "source_date_epoch": stage.source_date_epoch,
            "params": stage.params,
            "accelerators": list(stage.accelerators),
        }
        (folder / "job.json").write_text(json.dumps(told))
        if transport is not None:
            (folder / "transport.json").write_text(json.dumps(transport))


def accelerators(stage: Stage, store: Store) -> dict[str, Path]:
    """The stage's accelerator folders, made where they are missing and marked as used now."""
    found: dict[str, Path] = {}
    with store.guard("making an accelerator's folder"):
        for name in stage.accelerators:
            found[name] = store.root / "accelerators" / name
            found[name].mkdir(parents=True, exist_ok=True)
            os.utime(found[name])
    return found


def transport_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The caller's proxies and certificates."""
    return {name: environment[name] for name in TRANSPORT_VARIABLES if name in environment}


def _copy_program(folder: Path, key: Document, sources: Sources) -> None:
    program = key["program"]
    assert isinstance(program, Mapping)
    for path, sha256 in program.items():
        copy_checked(sources.project / path, folder / path, str(sha256))


def _digest(key: Document, name: str) -> str:
    inputs = key["inputs"]
    assert isinstance(inputs, Mapping)
    return str(inputs[name]).rpartition(":")[2]
