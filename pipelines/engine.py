"""What the Dagger executor asks of an engine, as data: one container, what it is given, what it gives back.

The executor speaks to this alone, so that the graph of a plan can be recorded and read without an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

# A file or folder inside the engine; only the engine that gave it knows what it is.
Handle: TypeAlias = object

OUT = "/stage/out"
ANSWER = "answer.json"


@dataclass(frozen=True, slots=True)
class Exec:
    """One container run. Every path is absolute in the container, and everything is mounted there.

    `tree` is the tar that becomes the root file system; None means the bootstrap image. `texts` are single
    files by their text, `programs` folders of project files by their paths. `volumes` map paths to names of
    cache volumes. A `fresh` run is never answered from the engine's own cache.
    """

    command: tuple[str, ...]
    tree: Handle | None = None
    files: Mapping[str, Handle] = field(default_factory=dict)
    folders: Mapping[str, Handle] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)
    fresh: bool = False


class Executed(Protocol):
    """A container that ended well."""

    @property
    def answer(self) -> str:
        """The text of OUT/ANSWER."""

    def file(self, name: str) -> Handle:
        """The file `name` of OUT."""

    def folder(self, name: str) -> Handle:
        """The folder `name` of OUT."""


class Engine(Protocol):
    """Runs containers."""

    async def execute(self, asked: Exec) -> Executed:
        """Run, or answer from the engine's cache. Raises ExecFailed when the program failed."""


@dataclass(eq=False)
class ExecFailed(Exception):
    """A container's program ended with a code other than 0; its output as far as the engine keeps it."""

    code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"exit code {self.code}"
