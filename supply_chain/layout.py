"""Reading the image from an OCI image layout on disk (OCI image specification 1.1, «Image Layout»).

The index's first manifest is the image; what hangs on it follows. Nothing is given out whose size and
sha256 are not those of its descriptor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from supply_chain import oci
from supply_chain.errors import InvalidDocument, LayoutError
from supply_chain.files import open_regular, read_regular
from supply_chain.image import (
    ARTIFACT,
    REBUILD,
    ImageConfig,
    image_config,
    image_manifest,
    layer,
    layers_by_title,
)

_CHUNK = 1 << 20


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
        return _parsed(lambda: image_manifest(self.manifest_bytes, f"{self.folder}: manifest"))

    @cached_property
    def layers(self) -> Mapping[str, oci.Descriptor]:
        """Title → layer, in the manifest's order. Titles are plain file names, each there once."""
        return _parsed(lambda: layers_by_title(self.manifest, str(self.folder)))

    def layer(self, title: str) -> oci.Descriptor:
        """The layer of that title."""
        return _parsed(lambda: layer(self.layers, title, str(self.folder)))

    @cached_property
    def config(self) -> ImageConfig:
        """The image's configuration; its digest is the metadata layer's and the command line's."""
        content = self.read(self.manifest.config, limit=oci.DOCUMENT_LIMIT)
        return _parsed(lambda: image_config(content, self.layers, f"{self.folder}: configuration"))

    def path(self, blob: oci.Descriptor) -> Path:
        """Where a blob is. What it holds is checked only by `read`, `stream` and `check`."""
        return self.folder / "blobs" / "sha256" / blob.hex

    def read(self, blob: oci.Descriptor, *, limit: int) -> bytes:
        """A blob's bytes, at most `limit`."""
        if blob.size > limit:
            raise LayoutError(
                f"{self.folder}: blob {blob.digest}: expected at most {limit} bytes, found {blob.size}",
                REBUILD,
            )
        return b"".join(self.stream(blob))

    def has(self, blob: oci.Descriptor) -> bool:
        """Whether there is something of that name and size."""
        path = self.path(blob)
        return path.is_file() and path.stat().st_size == blob.size

    def stream(self, blob: oci.Descriptor) -> Iterator[bytes]:
        """A blob's bytes in pieces. They are checked when the last one has been taken: LayoutError then
        means that all of them are to be thrown away.
        """
        where = f"{self.folder}: blob {blob.digest}"
        sha256 = hashlib.sha256()
        try:
            for chunk in self._stored(blob, where):
                sha256.update(chunk)
                yield chunk
        except OSError as error:
            raise LayoutError(f"{where}: {error.strerror or error}", REBUILD) from None
        if sha256.hexdigest() != blob.hex:
            raise LayoutError(f"{where}: its content's digest is sha256:{sha256.hexdigest()}", REBUILD)

    def _stored(self, blob: oci.Descriptor, where: str) -> Iterator[bytes]:
        """What is stored under the blob's name, of the blob's size. Raises LayoutError, OSError."""
        with open_regular(self.path(blob)) as file:
            size = os.fstat(file.fileno()).st_size
            if size != blob.size:
                raise LayoutError(f"{where}: expected {blob.size} bytes, found {size}", REBUILD)
            while chunk := file.read(_CHUNK):
                yield chunk

    def check(self) -> None:
        """Read and check every document and every blob of the image."""
        _ = self.config, self.layers
        for blob in self.manifest.blobs:
            for _ in self.stream(blob):
                pass


def open_layout(folder: Path) -> Layout:
    """The layout in `folder`. Raises LayoutError when it is none, or its index names no image first."""
    return Layout(folder, read_index(folder, lambda name: _document(folder, name)))


def read_index(folder: Path, document: Callable[[str], bytes]) -> oci.Index:
    """The index of the layout whose documents `document` gives by name; its first manifest is an image.
    Raises LayoutError.
    """
    marker = _parsed(lambda: oci.parse_object(document("oci-layout"), f"{folder}/oci-layout"))
    if marker.get("imageLayoutVersion") != "1.0.0":
        raise LayoutError(
            f"{folder}/oci-layout: expected version 1.0.0, found {marker.get('imageLayoutVersion')!r}",
            REBUILD,
        )
    index = _parsed(lambda: oci.parse_index(document("index.json"), f"{folder}/index.json"))
    if not index.manifests or index.manifests[0].artifact_type != ARTIFACT:
        found = index.manifests[0].artifact_type if index.manifests else "no manifest"
        raise LayoutError(
            f"{folder}/index.json: expected an image ({ARTIFACT}) as the first manifest, found {found}",
            REBUILD,
        )
    return index


def not_a_layout(folder: Path, part: str, error: OSError) -> LayoutError:
    """The error for a folder without a part that every layout has."""
    return LayoutError(
        f"{folder}: not an OCI layout: {part}: {error.strerror or error}",
        "name the folder that `disk-image build RECIPE --output LAYOUT` wrote",
    )


def _document(folder: Path, name: str) -> bytes:
    try:
        content = read_regular(folder / name, oci.DOCUMENT_LIMIT)
    except OSError as error:
        raise not_a_layout(folder, name, error) from None
    if len(content) > oci.DOCUMENT_LIMIT:
        raise LayoutError(
            f"{folder}/{name}: expected at most {oci.DOCUMENT_LIMIT} bytes, found more", REBUILD
        )
    return content


_Parsed = TypeVar("_Parsed")


def _parsed(parse: Callable[[], _Parsed]) -> _Parsed:
    try:
        return parse()
    except InvalidDocument as error:
        raise LayoutError(error.what, REBUILD) from None
