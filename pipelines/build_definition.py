"""What a plan is made from, as the part of SLSA's build definition that recipe and locks settle."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from pipelines.definition import Json, Plan, canonical_json
from pipelines.keys import ENVIRONMENT
from pipelines.lock import Lock, LockedFile
from pipelines.plan import tool_sets
from pipelines.recipe import Recipe
from stages.shared import purl
from supply_chain.provenance import (
    BUILD_TYPE,
    BuildDefinition,
    Digests,
    ExternalParameters,
    InternalParameters,
    ResourceDescriptor,
)


def planned(
    recipe: Recipe, lock: Lock, tools: Lock, plan: Plan, documents: dict[str, bytes]
) -> dict[str, Json]:
    """The build definition without what a build reads when it starts: recipe files, programs, the commit.

    `documents` are the files that recipe and locks were read from, by the name they get as dependencies.
    """
    steps: list[Json] = [stage.to_json() for stage in plan.stages]
    files = {**documents, "plan": canonical_json(steps)}
    definition = BuildDefinition(
        build_type=BUILD_TYPE,
        external_parameters=ExternalParameters(recipe=recipe.model_dump(mode="json", exclude_none=True)),
        internal_parameters=InternalParameters(stage_environment=ENVIRONMENT),
        resolved_dependencies=(
            *(_document(name, content) for name, content in files.items()),
            *_packages(recipe, lock, tools),
        ),
    )
    return definition.to_json()


def _document(name: str, content: bytes) -> ResourceDescriptor:
    return ResourceDescriptor(name=name, digest=Digests(sha256=hashlib.sha256(content).hexdigest()))


def _packages(recipe: Recipe, lock: Lock, tools: Lock) -> Iterable[ResourceDescriptor]:
    """Every locked file that the build uses, once, with the sets it is used in."""
    sets: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    used = tool_sets(recipe)
    for file in (*lock.packages, *lock.sources):
        sets[_identity(file)] += file.sets
    locked = set(sets)
    for file in tools.packages:
        sets[_identity(file)] += [f"tools-{name}" for name in file.sets if name in used]
    for (name, version, arch, sha256), found in sorted(sets.items()):
        if found:
            # The tools' lock mixes suites and does not say which file is of which.
            distro = purl.DISTRO[recipe.suite] if (name, version, arch, sha256) in locked else None
            yield ResourceDescriptor(
                uri=purl.deb(name, version, arch, distro),
                digest=Digests(sha256=sha256),
                annotations={"sets": [*sorted(found)]},
            )


def _identity(file: LockedFile) -> tuple[str, str, str, str]:
    return (file.name, file.version, file.arch, file.sha256)
