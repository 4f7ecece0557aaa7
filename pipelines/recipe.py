"""A recipe: what an image is made of, as TOML read into a frozen model."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Hashable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from pipelines.errors import RecipeError
from pipelines.toml_model import Loc, broken, load, nearest, read_text

PackageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
UnitName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9:_.@\\-]+\.(service|socket|target|timer|mount|path|slice)$")
]
UserName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
Mode = Annotated[str, Field(pattern=r"^[0-7]{4}$")]

VARIANTS = ("kernel-initrd-composefs-oci", "kernel-initrd", "raw", "iso", "ipxe", "qcow2", "oci")
BUILT_VARIANTS = ("kernel-initrd-composefs-oci",)


def _inside(value: str) -> str:
    _printable(value)
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("must be a path below the recipe's folder, without '..'")
    return value


def _printable(value: str) -> None:
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
        raise ValueError("must hold no control characters")


def _absolute(value: str) -> str:
    _printable(value)
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts or str(path) != value or value == "/":
        raise ValueError("must be a normalised absolute path in the image, without '..'")
    return value


RecipePath = Annotated[str, AfterValidator(_inside)]
ImagePath = Annotated[str, AfterValidator(_absolute)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(_Model):
    """A file (or a symbolic link) put into the root after the packages are installed."""

    path: ImagePath
    source: RecipePath | None = None
    symlink: Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$")] | None = None
    mode: Mode = "0644"
    user: UserName = "root"
    group: UserName = "root"

    @model_validator(mode="after")
    def _one_content(self) -> File:
        if (self.source is None) == (self.symlink is None):
            raise ValueError("give either source or symlink")
        return self


class User(_Model):
    """A user, and its group of the same name and number, added to the root; it has no password."""

    name: UserName
    uid: Annotated[int, Field(ge=1000, le=59999)]
    groups: tuple[UserName, ...] = ()
    home: ImagePath | None = None
    shell: ImagePath = "/usr/sbin/nologin"
    gecos: Annotated[str, Field(pattern=r"^[^:\n]*$")] = ""


class Units(_Model):
    """systemd units whose state the image fixes."""

    enable: tuple[UnitName, ...] = ()
    disable: tuple[UnitName, ...] = ()
    mask: tuple[UnitName, ...] = ()


class SourceKernel(_Model):
    """A kernel built from the locked source, configured from the architecture's tiny base plus fragments."""

    source: PackageName
    fragments: Annotated[tuple[RecipePath, ...], Field(min_length=1)]
    patches: tuple[RecipePath, ...] = ()
    modules: tuple[str, ...] = ()


class PackagedKernel(_Model):
    """The distribution's own kernel; `modules` are loaded by the initramfs, their dependencies first."""

    package: PackageName
    modules: tuple[str, ...] = ()


def _kernel_tag(value: Any) -> str | None:
    """Which kernel is meant: the one whose key is there. With both or neither the choice is the error."""
    if isinstance(value, (SourceKernel, PackagedKernel)):
        return f"<{type(value).__name__}>"
    if not isinstance(value, dict) or ("source" in value) == ("package" in value):
        return None
    return "<SourceKernel>" if "source" in value else "<PackagedKernel>"


Kernel = Annotated[
    Annotated[SourceKernel, Tag("<SourceKernel>")] | Annotated[PackagedKernel, Tag("<PackagedKernel>")],
    Discriminator(
        _kernel_tag,
        custom_error_type="kernel_choice",
        custom_error_message="give a table with either source (and fragments) or package",
    ),
]


class InitramfsFile(_Model):
    """A file added to the initramfs (firmware, keys)."""

    path: ImagePath
    source: RecipePath
    mode: Mode = "0644"


class Initramfs(_Model):
    """What the initramfs holds besides init, its runtime and the kernel's modules."""

    files: tuple[InitramfsFile, ...] = ()


class Recipe(_Model):
    """One image. Paths in `source`, `fragments`, `patches` are relative to the recipe's folder."""

    platform_slug: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    suite: Literal["trixie"]
    arch: Literal["amd64", "arm64"]
    source_date_epoch: Annotated[int, Field(ge=315532800, le=4102444800)]
    hostname: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    packages: Annotated[tuple[PackageName, ...], Field(min_length=1)]
    cmdline: tuple[Annotated[str, Field(pattern=r"^[\x21-\x7e]+$")], ...] = ()
    variants: Annotated[tuple[str, ...], Field(min_length=1)] = BUILT_VARIANTS
    kernel: Kernel
    initramfs: Initramfs = Field(default_factory=Initramfs)
    files: tuple[File, ...] = ()
    users: tuple[User, ...] = ()
    units: Units = Field(default_factory=Units)


def load_recipe(folder: Path) -> Recipe:
    """Read `folder`/recipe.toml. Raises RecipeError naming file, line, field, value and rule.

    The files that the recipe names must be there, below `folder` even when symbolic links are followed, and
    readable.
    """
    path = folder / "recipe.toml"
    recipe = load(path, Recipe)
    for loc, what, hint in _problems(recipe, folder):
        raise broken(path, read_text(path), loc, what, hint)
    return recipe


# What platform.machine() (uname(2)) says for Debian's architectures.
_DEBIAN_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


def host_arch() -> str:
    """Debian's name for this machine's architecture; the kernel's own where Debian's is not known here."""
    return _DEBIAN_ARCH.get(platform.machine(), platform.machine())


def check_host_arch(recipe: Recipe) -> None:
    """Raise RecipeError unless the recipe is for this machine's architecture: nothing is cross-built yet."""
    if recipe.arch != host_arch():
        raise RecipeError(
            f"{recipe.platform_slug}: arch: expected {host_arch()!r}, found {recipe.arch!r}",
            f"build it on an {recipe.arch} machine",
        )


Problem = tuple[Loc, str, str]


def _problems(recipe: Recipe, folder: Path) -> Iterator[Problem]:
    for index, variant in enumerate(recipe.variants):
        if variant not in VARIANTS:
            yield ("variants", index), f"unknown variant {variant!r}", nearest(variant, VARIANTS)
        elif variant not in BUILT_VARIANTS:
            yield (
                ("variants", index),
                f"variant {variant!r} is not built yet",
                f"built are: {', '.join(BUILT_VARIANTS)}",
            )
    for index, word in enumerate(recipe.cmdline):
        if word.split("=")[0] == "composefs":
            yield (
                ("cmdline", index),
                f"{word!r} is the build's own word",
                "drop it: the build adds the image's digest",
            )
    yield from _repeated(recipe)
    for loc, source in _named_files(recipe):
        if problem := _unusable(folder, source):
            yield loc, f"{source!r} {problem}", "name a readable file below the recipe's folder"


def _repeated(recipe: Recipe) -> Iterator[Problem]:
    for named in _lists(recipe):
        seen: set[Hashable] = set()
        for loc, value in named:
            if value in seen:
                yield loc, f"{value!r} is there twice", "drop one of them"
            seen.add(value)


def _lists(recipe: Recipe) -> Iterator[list[tuple[Loc, Hashable]]]:
    """The lists in which no value may come twice, with the place of each value."""
    yield [(("packages", index), name) for index, name in enumerate(recipe.packages)]
    yield [(("variants", index), name) for index, name in enumerate(recipe.variants)]
    yield [(("files", index, "path"), file.path) for index, file in enumerate(recipe.files)]
    yield [
        (("initramfs", "files", index, "path"), file.path)
        for index, file in enumerate(recipe.initramfs.files)
    ]
    yield [(("users", index, "name"), user.name) for index, user in enumerate(recipe.users)]
    yield [(("users", index, "uid"), user.uid) for index, user in enumerate(recipe.users)]
    for at, user in enumerate(recipe.users):
        yield [(("users", at, "groups", index), name) for index, name in enumerate(user.groups)]
    states = {"enable": recipe.units.enable, "disable": recipe.units.disable, "mask": recipe.units.mask}
    yield [
        (("units", state, index), unit)
        for state, units in states.items()
        for index, unit in enumerate(units)
    ]
    yield [(("kernel", "modules", index), name) for index, name in enumerate(recipe.kernel.modules)]
    if isinstance(recipe.kernel, SourceKernel):
        yield [(("kernel", "fragments", index), path) for index, path in enumerate(recipe.kernel.fragments)]
        yield [(("kernel", "patches", index), path) for index, path in enumerate(recipe.kernel.patches)]


def _named_files(recipe: Recipe) -> Iterator[tuple[Loc, str]]:
    for index, file in enumerate(recipe.files):
        if file.source is not None:
            yield ("files", index, "source"), file.source
    for index, added in enumerate(recipe.initramfs.files):
        yield ("initramfs", "files", index, "source"), added.source
    if isinstance(recipe.kernel, SourceKernel):
        yield from (
            (("kernel", "fragments", index), path) for index, path in enumerate(recipe.kernel.fragments)
        )
        yield from ((("kernel", "patches", index), path) for index, path in enumerate(recipe.kernel.patches))


def _unusable(folder: Path, source: str) -> str | None:
    path = os.path.realpath(folder / source)
    if not Path(path).is_relative_to(os.path.realpath(folder)):
        return f"leads to {path}, outside the recipe's folder"
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"can't be used: {error.strerror}"
    if not stat.S_ISREG(kind):
        return "is not a regular file"
    return None if os.access(path, os.R_OK) else "is not readable"
