"""A recipe: what an image is made of, as TOML read into a frozen model."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

PackageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
UnitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9:_.@\\-]+\.(service|socket|target|timer|mount|path|slice)$")]
UserName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
Mode = Annotated[str, Field(pattern=r"^[0-7]{4}$")]

VARIANTS = ("kernel-initrd-composefs-oci", "kernel-initrd", "raw", "iso", "ipxe", "qcow2", "oci")
BUILT_VARIANTS = ("kernel-initrd-composefs-oci",)


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("must be a path below the recipe's folder, without '..'")
    return value


def _absolute(value: str) -> str:
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
    symlink: str | None = None
    mode: Mode = "0644"
    user: UserName = "root"
    group: UserName = "root"

    @model_validator(mode="after")
    def _one_content(self) -> File:
        if (self.source is None) == (self.symlink is None):
            raise ValueError("give either source or symlink")
        return self


class User(_Model):
    """A user (and its group of the same name and number) added to the root; locked unless a key file lets it in."""

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
    """A kernel built from the locked source package, configured from the architecture's tiny base plus fragments."""

    source: PackageName
    fragments: Annotated[tuple[RecipePath, ...], Field(min_length=1)]
    patches: tuple[RecipePath, ...] = ()
    modules: tuple[str, ...] = ()


class PackagedKernel(_Model):
    """The distribution's own kernel; `modules` are loaded by the initramfs, their dependencies first."""

    package: PackageName
    modules: tuple[str, ...] = ()


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
    kernel: SourceKernel | PackagedKernel
    initramfs: Initramfs = Initramfs()
    files: tuple[File, ...] = ()
    users: tuple[User, ...] = ()
    units: Units = Units()


def load_recipe(folder: Path) -> Recipe:
    """Read `folder`/recipe.toml."""
    raise NotImplementedError
