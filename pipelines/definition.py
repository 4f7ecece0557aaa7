"""Stage definitions: a plan is data, and this file is the whole vocabulary.

`plan()` builds these, executors run them. Nothing here touches a disk or a network, and nothing here
knows what an image is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

Json: TypeAlias = "bool | int | str | Sequence[Json] | Mapping[str, Json] | None"


def canonical_json(value: Json) -> bytes:
    """Sorted keys, no spaces, UTF-8, no trailing newline: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class OutputKind(StrEnum):
    """`FILE` is one file; `FILES` is a folder of plain files (path and content count, nothing else)."""

    FILE = "file"
    FILES = "files"


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A file beside the recipe, by its path relative to the recipe's folder."""

    path: str

    def to_json(self) -> Json:
        return {"recipe_file": self.path}


@dataclass(frozen=True, slots=True)
class StageOutput:
    """A named output of another stage of the same plan."""

    stage: str
    output: str

    def to_json(self) -> Json:
        return {"stage_output": f"{self.stage}.{self.output}"}


@dataclass(frozen=True, slots=True)
class External:
    """A folder of plain files that the caller hands in when the plan runs (an image layout to boot, for
    example).
    """

    name: str

    def to_json(self) -> Json:
        return {"external": self.name}


Input: TypeAlias = RecipeFile | StageOutput | External


def _input_from_json(data: Mapping[str, str]) -> Input:
    ((kind, value),) = data.items()
    match kind:
        case "recipe_file":
            return RecipeFile(value)
        case "external":
            return External(value)
        case "stage_output":
            stage, _, output = value.rpartition(".")
            return StageOutput(stage, output)
    raise ValueError(f"no input is called {kind!r}")


@dataclass(frozen=True, slots=True)
class Output:
    """A named output and its kind."""

    name: str
    kind: OutputKind = OutputKind.FILE


@dataclass(frozen=True, slots=True)
class Program:
    """What runs inside a stage: a Python module and the project paths (files or folders) that it needs."""

    module: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One pure function of digests.

    `tools` is the output holding the tree that becomes the stage's root, as one tar; None marks a
    bootstrap stage, which
    runs under any python3 ≥ 3.11 with the standard library only. `network` is True for mirrors only.
    `accelerators`
    name scratch folders that outlive the stage and never change its result; they are in no key.
    """

    name: str
    program: Program
    source_date_epoch: int
    outputs: tuple[Output, ...]
    params: Mapping[str, Json] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)
    tools: StageOutput | None = None
    network: bool = False
    accelerators: tuple[str, ...] = ()

    def needs(self) -> Iterator[StageOutput]:
        """Every stage output that must exist before this stage can run."""
        if self.tools is not None:
            yield self.tools
        for wanted in self.inputs.values():
            if isinstance(wanted, StageOutput):
                yield wanted

    def to_json(self) -> dict[str, Json]:
        """The definition as data: what the golden shows and what the key hashes (with digests beside it)."""
        return {
            "name": self.name,
            "program": {"module": self.program.module, "paths": list(self.program.paths)},
            "source_date_epoch": self.source_date_epoch,
            "params": self.params,
            "tools": None if self.tools is None else self.tools.to_json(),
            "inputs": {name: wanted.to_json() for name, wanted in sorted(self.inputs.items())},
            "outputs": {output.name: output.kind.value for output in self.outputs},
            "network": self.network,
            "accelerators": list(self.accelerators),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stage:
        """The definition that `to_json` gave."""
        tools = None if data["tools"] is None else _input_from_json(data["tools"])
        assert tools is None or isinstance(tools, StageOutput)
        return cls(
            name=data["name"],
            program=Program(data["program"]["module"], tuple(data["program"]["paths"])),
            source_date_epoch=data["source_date_epoch"],
            outputs=tuple(Output(name, OutputKind(kind)) for name, kind in data["outputs"].items()),
            params=data["params"],
            inputs={name: _input_from_json(wanted) for name, wanted in data["inputs"].items()},
            tools=tools,
            network=data["network"],
            accelerators=tuple(data["accelerators"]),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in an order in which each comes after everything it needs."""

    name: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        seen: dict[str, set[str]] = {}
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"stage {stage.name!r} is defined twice")
            for wanted in stage.needs():
                if wanted.output not in seen.get(wanted.stage, ()):
                    what = f"{wanted.stage}.{wanted.output}, which no earlier stage has"
                    raise ValueError(f"stage {stage.name!r} needs {what}")
            seen[stage.name] = {output.name for output in stage.outputs}

    def stage(self, name: str) -> Stage:
        """The stage of that name; KeyError when the plan has none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def closure(self, *targets: str) -> Plan:
        """Only the stages that `targets` need, and `targets` themselves."""
        wanted = set(targets)
        for stage in reversed(self.stages):
            if stage.name in wanted:
                wanted.update(needed.stage for needed in stage.needs())
        return Plan(self.name, tuple(stage for stage in self.stages if stage.name in wanted))
