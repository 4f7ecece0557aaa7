"""What this project raises on purpose.

DiskImageError            a failure with what to do about it; exit code 1
├── UsageError            the call itself is wrong; exit code 2
├── RecipeError           a recipe or lock that breaks a rule
├── ArchiveError          the package archive answered something unusable
├── StoreError            the content-addressed store can't serve or keep an entry
└── StageError            a stage's program failed; carries its log
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(eq=False)
class DiskImageError(Exception):
    """One line of what failed (`what`, with expected and found) and one of what to do (`hint`)."""

    what: str
    hint: str

    exit_code = 1

    def __str__(self) -> str:
        return self.what

    @property
    def where(self) -> str:
        """What stands before `what` when it is shown: the stage or step, with its colon."""
        return ""

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {"error": self.what, "hint": self.hint, "stage": None}


class UsageError(DiskImageError):
    """The command line is wrong."""

    exit_code = 2


class RecipeError(DiskImageError):
    """A recipe or a lock breaks a rule; `what` names file, line, field, value and rule."""


class ArchiveError(DiskImageError):
    """The package archive, or what it served, can't be trusted or used."""


class StoreError(DiskImageError):
    """The store is unusable, full, or holds an entry that is not what it was."""


@dataclass(eq=False)
class StageError(DiskImageError):
    """A stage's program failed. `code` is the program's own word for the failure, `log` its output."""

    stage: str = ""
    code: str = "failed"
    details: tuple[str, ...] = ()
    log: Path | None = field(default=None)

    @property
    def where(self) -> str:
        return f"stage {self.stage}: " if self.stage else ""

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "stage": self.stage or None}
