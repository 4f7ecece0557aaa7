"""stages/tools.toml: the package sets whose unpacked trees the stages run in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pipelines.recipe import PackageName

TOOLS = Path(__file__).parent.parent / "stages" / "tools.toml"
TOOLS_LOCK = TOOLS.with_name("tools.lock")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Base(_Model):
    """Packages of every set."""

    packages: tuple[PackageName, ...]


class Extra(_Model):
    """Packages taken from a suite from which nothing else comes."""

    suite: str
    packages: Annotated[tuple[PackageName, ...], Field(min_length=1)]


class ToolSet(_Model):
    """One set: its packages, and those that only one architecture's set has."""

    packages: tuple[PackageName, ...]
    amd64: tuple[PackageName, ...] = ()
    arm64: tuple[PackageName, ...] = ()

    def of(self, arch: str) -> tuple[PackageName, ...]:
        """The packages to ask for on `arch`."""
        return (*self.packages, *(self.arm64 if arch == "arm64" else self.amd64))


class Tools(_Model):
    """The whole file."""

    suite: str
    extra: tuple[Extra, ...] = ()
    base: Base
    sets: dict[str, ToolSet]


def load_tools(path: Path = TOOLS) -> Tools:
    """Read the tools' sets. Raises RecipeError naming the field that breaks a rule."""
    from pipelines.toml_model import load

    return load(path, Tools)
