"""What a stage reads from outside the store: program files, files beside the recipe, folders handed in.

Each is hashed for the key and hashed again while it is copied into a job, so that a file edited in between
is never built under the wrong key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.definition import External, Input, OutputKind, Program, RecipeFile
from pipelines.errors import RecipeError, UsageError
from pipelines.keys import Content, files_digest

PROJECT = Path(__file__).resolve().parent.parent
_CHUNK = 1 << 20


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass
class Sources:
    """Where a plan's outside content is: the project's folder, the recipe's, and each external's by name."""

    recipe: Path | None = None
    externals: Mapping[str, Path] = field(default_factory=dict)
    project: Path = PROJECT
    _hashed: dict[Path, str] = field(default_factory=dict, repr=False)

    def program(self, program: Program) -> dict[str, str]:
        """The sha256 of each of a program's files by project path; UsageError when a path isn't there."""
        found: dict[str, str] = {}
        for wanted in program.paths:
            for path in self._program_files(wanted):
                if path not in self._hashed:
                    self._hashed[path] = sha256_file(path)
                found[path.relative_to(self.project).as_posix()] = self._hashed[path]
        return dict(sorted(found.items()))

    def content(self, wanted: Input) -> Content:
        """The content of a recipe file or an external, read and hashed now."""
        if isinstance(wanted, RecipeFile):
            return Content(OutputKind.FILE, sha256_file(self.recipe_file(wanted)))
        if isinstance(wanted, External):
            files = self.external_files(wanted)
            return Content(
                OutputKind.FILES, files_digest((name, sha256_file(path)) for name, path in files.items())
            )
        raise TypeError(f"{wanted} is a stage's output, not a source")

    def recipe_file(self, wanted: RecipeFile) -> Path:
        """A recipe file's path. RecipeError when it is missing, no plain file, or leaves the recipe's
        folder.
        """
        if self.recipe is None:
            raise RecipeError(f"{wanted.path}: this plan has no recipe folder", "run it for a recipe")
        folder = self.recipe.resolve()
        path = (folder / wanted.path).resolve()
        if not path.is_relative_to(folder):
            raise RecipeError(
                f"{self.recipe / wanted.path}: leads to {path}, outside the recipe's folder",
                f"copy the file into {self.recipe} and name it by its path there",
            )
        if not path.is_file():
            found = "a folder" if path.is_dir() else "something else" if path.exists() else "nothing"
            raise RecipeError(
                f"{self.recipe / wanted.path}: expected a file, found {found}",
                "create the file, or correct its path in recipe.toml",
            )
        return path

    def external_files(self, wanted: External) -> dict[str, Path]:
        """An external folder's plain files by path, sorted; UsageError for anything else in it."""
        try:
            folder = self.externals[wanted.name]
        except KeyError:
            raise UsageError(f"external {wanted.name!r} was not handed in", "name its folder") from None
        if not folder.is_dir():
            raise UsageError(f"{folder}: expected a folder for {wanted.name!r}", "name a folder that exists")
        return dict(sorted((path.relative_to(folder).as_posix(), path) for path in plain_files(folder)))

    def copy_external(self, wanted: External, target: Path, digest: str) -> None:
        """Copy an external's files; UsageError when they are not those that were hashed for the key."""
        target.mkdir()
        files: list[tuple[str, str]] = []
        for name, path in self.external_files(wanted).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            files.append((name, _copy(path, target / name)))
        if files_digest(files) != digest:
            raise _changed(self.externals[wanted.name])

    def _program_files(self, wanted: str) -> Iterator[Path]:
        path = self.project / wanted
        if path.is_dir():
            for inner in plain_files(path):
                if "__pycache__" not in inner.parts and inner.suffix != ".pyc":
                    yield inner
        elif path.is_file():
            yield path
        else:
            raise UsageError(
                f"{path}: a stage's program file is missing", "reinstall, or restore it from the repository"
            )


def plain_files(folder: Path) -> Iterator[Path]:
    """Every plain file below `folder`, in no order; UsageError names a symlink, device, socket or fifo."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from plain_files(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
        else:
            raise UsageError(
                f"{entry.path}: expected a plain file or folder", "replace it by the file itself"
            )


def copy_checked(source: Path, target: Path, sha256: str) -> None:
    """Copy a file's bytes; UsageError when they are not those that were hashed for the key."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if _copy(source, target) != sha256:
        raise _changed(source)


def _copy(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def _changed(path: Path) -> UsageError:
    return UsageError(f"{path}: changed while the build ran", "run the same command again")
