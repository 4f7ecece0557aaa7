"""The key of a stage: a digest of everything its result may depend on, and nothing else.

Pure over digests: no disk, no store, no executor. Every executor computes the same key from the same
content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pipelines.definition import Json, OutputKind, Stage, canonical_json

Document: TypeAlias = dict[str, Json]

# Raised when what a stage may see of its environment changes, so that no older result is taken for a new
# one.
ENVIRONMENT = 1


@dataclass(frozen=True, slots=True)
class Content:
    """What an input or output holds: the digest (64 hex digits) means what its kind says."""

    kind: OutputKind
    digest: str

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.digest}"


def files_digest(files: Iterable[tuple[str, str]]) -> str:
    """The digest of a folder of plain files from its (path, sha256) pairs, in any order."""
    listed: list[Json] = [
        [path, sha256] for path, sha256 in sorted(files, key=lambda file: file[0].encode())
    ]
    return hashlib.sha256(canonical_json(listed)).hexdigest()


def document(
    stage: Stage, program: Mapping[str, str], tools: str | None, inputs: Mapping[str, Content]
) -> Document:
    """The key's parts, by component, so that a later run can say which of them changed.

    `program` maps each program file's project path to its sha256, `tools` is the digest of the tools tree's
    tar, `inputs` has one content for each of the stage's inputs. Raises ValueError when one is missing or
    not of the stage.
    """
    if set(inputs) != set(stage.inputs):
        raise ValueError(
            f"stage {stage.name!r} has inputs {sorted(stage.inputs)}, contents are of {sorted(inputs)}"
        )
    if (tools is None) != (stage.tools is None):
        raise ValueError(
            f"stage {stage.name!r}: the digest of its tools tree is {tools}, its tools are {stage.tools}"
        )
    definition = stage.to_json()
    del definition["accelerators"]
    return {
        "environment": ENVIRONMENT,
        "definition": definition,
        "program": dict(program),
        "tools": tools,
        "inputs": {name: str(content) for name, content in inputs.items()},
    }


def key(of: Document) -> str:
    """The stage's key: 64 hex digits."""
    return hashlib.sha256(canonical_json(of)).hexdigest()
