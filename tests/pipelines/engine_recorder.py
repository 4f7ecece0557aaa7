"""An engine that runs nothing: it notes what is asked, and answers from a volume that is a dict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipelines.dagger_runner import ABSENT, DAMAGED
from pipelines.engine import Exec, ExecFailed, Handle


@dataclass(frozen=True)
class Ended:
    """A container that ended well; its files are known by who wrote them."""

    answer: str
    origin: str

    def file(self, name: str) -> Handle:
        return f"{self.origin}.{name}"

    def folder(self, name: str) -> Handle:
        return f"{self.origin}.{name}/"


def content_of(stage: str, name: str, asked: Exec) -> str:
    """What an output holds when nothing else is said: its own name."""
    return f"{stage}.{name}"


@dataclass
class Recorder:
    """`content` says what a stage writes, from its name, the output's and the container."""

    content: Callable[[str, str, Exec], str] = content_of
    asked: list[Exec] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    failing: dict[str, ExecFailed] = field(default_factory=dict)

    async def execute(self, asked: Exec) -> Ended:
        self.asked.append(asked)
        verb, *words = command(asked)
        if verb == "find":
            return Ended(json.dumps(self._result(words[0])), f"result {words[0]}")
        if verb == "fetch":
            if words[0] in self.damaged:
                self.damaged.remove(words[0])
                del self.results[words[0]]
                raise ExecFailed(DAMAGED, "", f"result {words[0]}: tree: expected sha256 aa, found bb\n")
            self._result(words[0])
            return Ended("{}", f"result {words[0]}")
        if verb == "keep":
            record = json.loads(asked.texts["/kept/record.json"])
            self.results[words[2]] = record
            self.last[words[1]] = words[2]
            return Ended("{}", "keep")
        if verb == "last":
            kept = {stage: self.results[name]["document"] for stage, name in self.last.items()}
            return Ended(json.dumps(kept), "last")
        assert verb == "run"
        if words[0] in self.failing:
            raise self.failing[words[0]]
        kinds = json.loads(asked.texts["/order.json"])["outputs"]
        outputs = {name: self._output(words[0], name, kind, asked) for name, kind in kinds.items()}
        return Ended(json.dumps({"outputs": outputs, "milliseconds": 1000}), words[0])

    def ran(self) -> list[str]:
        """The stages whose programs were asked to run, in the order of asking."""
        return [command(asked)[1] for asked in self.asked if command(asked)[0] == "run"]

    def _result(self, key: str) -> dict[str, Any]:
        if key not in self.results:
            raise ExecFailed(ABSENT, "", "")
        return self.results[key]

    def _output(self, stage: str, name: str, kind: str, asked: Exec) -> dict[str, Any]:
        digest = hashlib.sha256(self.content(stage, name, asked).encode()).hexdigest()
        files = [["Packages", digest, 1]] if kind == "files" else []
        return {"kind": kind, "digest": digest, "size": 1, "files": files, "sha256": digest}


def command(asked: Exec) -> tuple[str, ...]:
    """The runner's verb and its words."""
    return asked.command[asked.command.index("pipelines.dagger_runner") + 1 :]
