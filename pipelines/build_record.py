"""Writing what a build was made from, beside its layout.

The unchanged build comes through here too, so that the models of supply_chain.provenance load only when
there is something to write.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipelines.definition import Json, RecipeFile
from pipelines.keys import files_digest
from supply_chain.beside import write_beside

if TYPE_CHECKING:
    from pipelines.commands.request import Request

RECIPE_FILE, PROGRAMS, SOURCE = "recipe:", "programs", "source"


@dataclass(frozen=True)
class Run:
    """One run of `disk-image build`: the executor, when it began, the bootstrap image that Dagger ran."""

    executor: str
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    base: str | None = None


def definition(request: Request, git_sha: str | None) -> dict[str, Json]:
    """The whole build definition, from what the sources hold now."""
    found: dict[str, Any] = dict(request.definition)
    named: dict[str, dict[str, str]] = {}
    for stage in request.plan.stages:
        for wanted in stage.inputs.values():
            if isinstance(wanted, RecipeFile):
                digest = request.sources.content(wanted).digest
                named[f"{RECIPE_FILE}{wanted.path}"] = {"sha256": digest}
    project = request.sources.project
    programs = (
        (path.relative_to(project).as_posix(), sha256) for path, sha256 in request.programs().items()
    )
    named[PROGRAMS] = {"sha256": files_digest(programs)}
    if git_sha is not None:
        named[SOURCE] = {"gitCommit": git_sha}
        found["externalParameters"] = {**found["externalParameters"], "gitSha": git_sha}
    found["resolvedDependencies"] = sorted(
        (
            *found["resolvedDependencies"],
            *({"name": name, "digest": digest} for name, digest in named.items()),
        ),
        key=lambda each: (each.get("name", ""), each.get("uri", "")),
    )
    return found


def write_build_record(path: Path, image: str, built: Mapping[str, Json], run: Run) -> None:
    """Write the record of `image` (`sha256:<hex>`), unless `path` has one of the same image and build
    definition: that one tells of the run that made the image.
    """
    if _describes(path, image, built):
        return
    from supply_chain.provenance import BuildRecord

    builder: dict[str, Json] = {"version": {**_versions(), "executor": run.executor}}
    if run.base is not None:
        name, _, digest = run.base.partition("@sha256:")
        base: dict[str, Json] = {"name": "bootstrap image", "uri": f"docker-image://{name}"}
        builder["builderDependencies"] = [base | ({"digest": {"sha256": digest}} if digest else {})]
    record = BuildRecord.model_validate(
        {
            "schemaVersion": 1,
            "image": image,
            "buildDefinition": built,
            "runDetails": {
                "builder": builder,
                "metadata": {
                    "invocationId": _invocation(os.environ),
                    "startedOn": _rfc3339(run.started),
                    "finishedOn": _rfc3339(datetime.now(UTC)),
                },
            },
        },
        by_name=False,
    )
    write_beside(path, record.to_bytes())


def _describes(path: Path, image: str, built: Mapping[str, Json]) -> bool:
    try:
        found = json.loads(path.read_bytes())
        return bool(found["image"] == image and found["buildDefinition"] == built and found["runDetails"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _versions() -> dict[str, Json]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Json] = {"python": platform.python_version()}
    # Run from its files without being installed, it has no version: the programs' digest says which.
    with suppress(PackageNotFoundError):
        found["disk-image-ci"] = version("disk-image-ci")
    return found


def _invocation(environment: Mapping[str, str]) -> str:
    """The forge's address of the run, else a name of its own."""
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
    server, repository, number = (environment.get(name, "") for name in names)
    if not (server and repository and number):
        return f"urn:uuid:{uuid4()}"
    attempt = environment.get("GITHUB_RUN_ATTEMPT", "1")
    return f"{server.rstrip('/')}/{repository}/actions/runs/{number}/attempts/{attempt}"


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
