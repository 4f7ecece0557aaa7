"""What makes a manifest one of this project's images, wherever it is stored.

Manifest, configuration and build manifest are each read strictly and compared with the others. All functions
raise InvalidDocument, naming what was expected and found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from supply_chain import oci
from supply_chain.errors import InvalidDocument

ARTIFACT = "application/vnd.powernode.disk_image.v1"
CONFIG = "application/vnd.powernode.disk_image.config.v1+json"
TITLE = "org.opencontainers.image.title"
FSVERITY = "containers.composefs.fsverity"
BUILD_MANIFEST, KERNEL, INITRAMFS, METADATA = (
    "build-manifest.json",
    "vmlinuz",
    "initramfs.cpio.zst",
    "root.cfs",
)
REBUILD = "build the image anew: disk-image build RECIPE --output LAYOUT"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")

_Arch = Literal["amd64", "arm64"]
_KernelVersion = Annotated[str, Field(pattern=r"^[0-9][A-Za-z0-9.+~-]*$")]
_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class FormatVersions(_Model):
    """The versions of the formats that the image is written in."""

    config: Literal[1]
    build_manifest: Literal[1]
    composefs: Literal[0]
    pack: Literal[1]


class ImageConfig(_Model):
    """The image's configuration. `cmdline` is the kernel's command line and ends with `composefs=<hex>`."""

    arch: _Arch
    kernel_version: _KernelVersion
    cmdline: Annotated[str, Field(pattern=r"^[\x20-\x7e]+$")]
    fsverity_algorithm: Literal["sha256"]
    fsverity_digest: _Hex
    source_date_epoch: Annotated[int, Field(ge=0)]
    format_versions: FormatVersions


class Artifact(_Model):
    """One layer: sha256 in hex, size in bytes."""

    sha256: _Hex
    size_bytes: Annotated[int, Field(ge=0)]


class BuildManifest(_Model):
    """`build-manifest.json`: the layers beside it by title, and what boots them. What is null here stands in
    the signed provenance, since the image holds only facts of its own content.
    """

    schema_version: Literal[1]
    arch: _Arch
    kernel_version: _KernelVersion
    variants: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    artifacts: Mapping[str, Artifact]
    fsverity_root_hash: _Hex
    base_image_digest: None
    apt_snapshot: None
    git_sha: None
    oci_digest: None


def image_manifest(content: bytes, what: str) -> oci.Manifest:
    """A manifest of the artifact type of this project's images."""
    manifest = oci.parse_manifest(content, what)
    for part, expected, found in (
        ("media type", oci.MANIFEST, manifest.media_type),
        ("artifact type", ARTIFACT, manifest.artifact_type),
        ("configuration's media type", CONFIG, manifest.config.media_type),
        ("subject", None, manifest.subject),
    ):
        if found != expected:
            raise _differs(f"{what}: {part}", expected, found)
    return manifest


def layers_by_title(manifest: oci.Manifest, what: str) -> Mapping[str, oci.Descriptor]:
    """Title → layer, in the manifest's order. Titles are plain file names, each there once."""
    found: dict[str, oci.Descriptor] = {}
    for number, layer in enumerate(manifest.layers):
        title = (layer.annotations or {}).get(TITLE, "")
        if not _FILE_NAME.fullmatch(title) or title in found:
            raise _differs(f"{what}: layer {number}", "a plain file name, once", repr(title))
        found[title] = layer
    return MappingProxyType(found)


def layer(layers: Mapping[str, oci.Descriptor], title: str, what: str) -> oci.Descriptor:
    """The layer of that title."""
    try:
        return layers[title]
    except KeyError:
        raise InvalidDocument(f"{what}: no layer with the title {title!r}", REBUILD) from None


def image_config(content: bytes, layers: Mapping[str, oci.Descriptor], what: str) -> ImageConfig:
    """The image's configuration; its fs-verity digest is the metadata layer's and the command line's."""
    config = _validated(ImageConfig, content, what)
    stated = f"{config.fsverity_algorithm}:{config.fsverity_digest}"
    annotated = (layer(layers, METADATA, what).annotations or {}).get(FSVERITY)
    if annotated != stated:
        raise InvalidDocument(
            f"{what}: expected {annotated}, as {METADATA} is annotated, found {stated}", REBUILD
        )
    words = [word for word in config.cmdline.split(" ") if word.startswith("composefs=")]
    if words != [f"composefs={config.fsverity_digest}"]:
        raise _differs(f"{what}: cmdline", f"composefs={config.fsverity_digest} once", words)
    return config


def build_manifest(
    content: bytes, layers: Mapping[str, oci.Descriptor], config: ImageConfig, what: str
) -> BuildManifest:
    """The build manifest; it names every other layer with digest and size, and says what the configuration
    says.
    """
    manifest = _validated(BuildManifest, content, what)
    there = {
        title: Artifact(sha256=each.hex, size_bytes=each.size)
        for title, each in layers.items()
        if title != BUILD_MANIFEST
    }
    for title in sorted({*there, *manifest.artifacts}):
        if manifest.artifacts.get(title) != there.get(title):
            raise _differs(f"{what}: artifact {title}", there.get(title), manifest.artifacts.get(title))
    for part, expected, found in (
        ("arch", config.arch, manifest.arch),
        ("kernel_version", config.kernel_version, manifest.kernel_version),
        ("fsverity_root_hash", config.fsverity_digest, manifest.fsverity_root_hash),
    ):
        if found != expected:
            raise _differs(f"{what}: {part}", f"{expected}, as the configuration says", found)
    return manifest


_Read = TypeVar("_Read", bound=_Model)


def _validated(model: type[_Read], content: bytes, what: str) -> _Read:
    try:
        return model.model_validate(oci.parse_object(content, what))
    except ValidationError as error:
        raise oci.broken_rule(error, what, REBUILD) from None


def _differs(what: str, expected: object, found: object) -> InvalidDocument:
    return InvalidDocument(f"{what}: expected {expected or 'none'}, found {found or 'none'}", REBUILD)
