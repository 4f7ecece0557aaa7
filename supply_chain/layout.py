"""Reading the image from an OCI image layout on disk (OCI image specification 1.1, «Image Layout»).

The index's first manifest is the image; what hangs on it follows. Nothing is given out whose size and
sha256 are not those of its descriptor.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from supply_chain import oci
from supply_chain.errors import InvalidDocument, LayoutError

ARTIFACT = "application/vnd.powernode.disk_image.v1"
CONFIG = "application/vnd.powernode.disk_image.config.v1+json"
TITLE = "org.opencontainers.image.title"
FSVERITY = "containers.composefs.fsverity"
METADATA = "root.cfs"
_CHUNK = 1 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_REBUILD = "build the image anew: disk-image build RECIPE --output LAYOUT"


class FormatVersions(BaseModel):
    """The versions of the formats that the image is written in."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    config: Literal[1]
    build_manifest: Literal[1]
    composefs: Literal[0]
    pack: Literal[1]


class ImageConfig(BaseModel):
    """The image's configuration. `cmdline` is the kernel's command line and ends with `composefs=<hex>`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    arch: Literal["amd64", "arm64"]
    kernel_version: Annotated[str, Field(pattern=r"^[0-9][A-Za-z0-9.+~-]*$")]
    cmdline: Annotated[str, Field(pattern=r"^[\x20-\x7e]+$")]
    fsverity_algorithm: Literal["sha256"]
    fsverity_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    source_date_epoch: Annotated[int, Field(ge=0)]
    format_versions: FormatVersions


@dataclass(frozen=True)
class Layout:
    """An image on disk. Make one with `open_layout`; properties and methods raise LayoutError for what is
    not as its descriptor says.
    """

    folder: Path
    index: oci.Index

    @property
    def image(self) -> oci.Descriptor:
        """The image's manifest."""
        return self.index.manifests[0]

    @cached_property
    def manifest_bytes(self) -> bytes:
        """The manifest as it is stored; its sha256 is the image's identity."""
        return self.read(self.image, limit=oci.DOCUMENT_LIMIT)

    @cached_property
    def manifest(self) -> oci.Manifest:
        """The image's manifest, of the artifact type of this project's images."""
        manifest = _parsed(lambda: oci.parse_manifest(self.manifest_bytes, f"{self.folder}: manifest"))
        for what, expected, found in (
            ("media type", oci.MANIFEST, manifest.media_type),
            ("artifact type", ARTIFACT, manifest.artifact_type),
            ("configuration's media type", CONFIG, manifest.config.media_type),
            ("subject", None, manifest.subject),
        ):
            if found != expected:
                raise LayoutError(
                    f"{self.folder}: manifest: {what}: expected {expected}, found {found}", _REBUILD
                )
        return manifest

    @cached_property
    def layers(self) -> Mapping[str, oci.Descriptor]:
        """Title → layer, in the manifest's order. Titles are plain file names, each there once."""
        found: dict[str, oci.Descriptor] = {}
        for number, layer in enumerate(self.manifest.layers):
            title = (layer.annotations or {}).get(TITLE, "")
            if not _FILE_NAME.fullmatch(title) or title in found:
                raise LayoutError(
                    f"{self.folder}: layer {number}: expected a plain file name, once, found {title!r}",
                    _REBUILD,
                )
            found[title] = layer
        return MappingProxyType(found)

    def layer(self, title: str) -> oci.Descriptor:
        """The layer of that title."""
        try:
            return self.layers[title]
        except KeyError:
            raise LayoutError(f"{self.folder}: no layer with the title {title!r}", _REBUILD) from None

    @cached_property
    def config(self) -> ImageConfig:
        """The image's configuration; its digest is the metadata layer's and the command line's."""
        content = self.read(self.manifest.config, limit=oci.DOCUMENT_LIMIT)
        what = f"{self.folder}: configuration"
        try:
            config = ImageConfig.model_validate(_parsed(lambda: oci.parse_object(content, what)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise LayoutError(
                f"{what}: {field}: {first['msg']} (found {first['input']!r})", _REBUILD
            ) from None
        stated = f"{config.fsverity_algorithm}:{config.fsverity_digest}"
        annotated = (self.layer(METADATA).annotations or {}).get(FSVERITY)
        if annotated != stated:
            raise LayoutError(
                f"{what}: expected {annotated}, as {METADATA} is annotated, found {stated}",
                _REBUILD,
            )
        words = [word for word in config.cmdline.split(" ") if word.startswith("composefs=")]
        if words != [f"composefs={config.fsverity_digest}"]:
            raise LayoutError(
                f"{what}: cmdline: expected composefs={config.fsverity_digest} once, found {words}", _REBUILD
            )
        return config

    def path(self, blob: oci.Descriptor) -> Path:
        """Where a blob is. What it holds is checked only by `read`, `stream` and `check`."""
        return self.folder / "blobs" / "sha256" / blob.hex

    def read(self, blob: oci.Descriptor, *, limit: int) -> bytes:
        """A blob's bytes, at most `limit`."""
        if blob.size > limit:
            raise LayoutError(
                f"{self.folder}: blob {blob.digest}: expected at most {limit} bytes, found {blob.size}",
                _REBUILD,
            )
        return b"".join(self.stream(blob))

    def stream(self, blob: oci.Descriptor) -> Iterator[bytes]:
        """A blob's bytes in pieces. They are checked when the last one has been taken: LayoutError then
        means that all of them are to be thrown away.
        """
        where = f"{self.folder}: blob {blob.digest}"
        sha256 = hashlib.sha256()
        try:
            with open(self.path(blob), "rb", buffering=0, opener=_open) as file:
                size = os.fstat(file.fileno()).st_size
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise LayoutError(f"{where}: not a regular file", _REBUILD)
                if size != blob.size:
                    raise LayoutError(f"{where}: expected {blob.size} bytes, found {size}", _REBUILD)
                while chunk := file.read(_CHUNK):
                    sha256.update(chunk)
                    yield chunk
        except OSError as error:
            raise LayoutError(f"{where}: {error.strerror or error}", _REBUILD) from None
        if sha256.hexdigest() != blob.hex:
            raise LayoutError(f"{where}: its content's digest is sha256:{sha256.hexdigest()}", _REBUILD)

    def check(self) -> None:
        """Read and check every document and every blob of the image."""
        _ = self.config, self.layers
        for blob in self.manifest.blobs:
            for _ in self.stream(blob):
                pass


def open_layout(folder: Path) -> Layout:
    """The layout in `folder`. Raises LayoutError when it is none, or its index names no image first."""
    marker = _parsed(lambda: oci.parse_object(_document(folder, "oci-layout"), f"{folder}/oci-layout"))
    if marker.get("imageLayoutVersion") != "1.0.0":
        raise LayoutError(
            f"{folder}/oci-layout: expected version 1.0.0, found {marker.get('imageLayoutVersion')!r}",
            _REBUILD,
        )
    index = _parsed(lambda: oci.parse_index(_document(folder, "index.json"), f"{folder}/index.json"))
    if not index.manifests or index.manifests[0].artifact_type != ARTIFACT:
        found = index.manifests[0].artifact_type if index.manifests else "no manifest"
        raise LayoutError(
            f"{folder}/index.json: expected an image ({ARTIFACT}) as the first manifest, found {found}",
            _REBUILD,
        )
    return Layout(folder, index)


def _document(folder: Path, name: str) -> bytes:
    try:
        with open(folder / name, "rb", opener=_open) as file:
            content = file.read(oci.DOCUMENT_LIMIT + 1)
    except OSError as error:
        raise LayoutError(
            f"{folder}: not an OCI layout: {name}: {error.strerror or error}",
            "name the folder that `disk-image build RECIPE --output LAYOUT` wrote",
        ) from None
    if len(content) > oci.DOCUMENT_LIMIT:
        raise LayoutError(
            f"{folder}/{name}: expected at most {oci.DOCUMENT_LIMIT} bytes, found more", _REBUILD
        )
    return content


def _open(path: str, flags: int) -> int:
    # Opening a fifo would wait for a writer.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


_Parsed = TypeVar("_Parsed")


def _parsed(parse: Callable[[], _Parsed]) -> _Parsed:
    try:
        return parse()
    except InvalidDocument as error:
        raise LayoutError(error.what, _REBUILD) from None
