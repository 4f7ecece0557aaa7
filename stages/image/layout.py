"""Writing an OCI image layout: blobs under their digests, `index.json`, `oci-layout` (OCI image
specification 1.1). Every blob is hashed once, while it is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
TITLE = "org.opencontainers.image.title"
_CHUNK = 1 << 20


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, UTF-8, no trailing newline."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob in the layout: media type, sha256 (hex), size in bytes."""

    media_type: str
    sha256: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the specification writes it, without fields that are not set."""
        described: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": f"sha256:{self.sha256}",
            "size": self.size,
        }
        if self.annotations:
            described["annotations"] = dict(self.annotations)
        if self.artifact_type is not None:
            described["artifactType"] = self.artifact_type
        return described


class Layout:
    """A layout being written into `folder`, which must not exist."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)

    def path(self, blob: Descriptor) -> Path:
        """Where a blob is."""
        return self._blobs / blob.sha256

    def add(
        self,
        media_type: str,
        write: Callable[[BinaryIO], None],
        annotations: Mapping[str, str] | None = None,
    ) -> Descriptor:
        """The blob that `write` writes."""
        partial = self._folder / "partial"
        with partial.open("wb", _CHUNK) as file:
            hashed = _Hashed(file)
            write(cast(BinaryIO, hashed))
        digest = hashed.sha256.hexdigest()
        partial.rename(self._blobs / digest)
        return Descriptor(media_type, digest, hashed.size, annotations or {})

    def add_bytes(
        self, media_type: str, content: bytes, annotations: Mapping[str, str] | None = None
    ) -> Descriptor:
        """A blob of these bytes."""
        return self.add(media_type, lambda output: _written(output, content), annotations)

    def add_file(
        self, media_type: str, path: Path, annotations: Mapping[str, str] | None = None
    ) -> Descriptor:
        """A copy of a file as a blob."""

        def copy(output: BinaryIO) -> None:
            with path.open("rb") as source:
                while chunk := source.read(_CHUNK):
                    output.write(chunk)

        return self.add(media_type, copy, annotations)

    def finish(self, artifact_type: str, config: Descriptor, layers: Sequence[Descriptor]) -> Descriptor:
        """Write manifest, index and marker; the manifest is the index's first and only entry."""
        manifest = self.add_bytes(
            MANIFEST,
            canonical_json(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "artifactType": artifact_type,
                    "config": config.to_json(),
                    "layers": [layer.to_json() for layer in layers],
                }
            ),
        )
        described = Descriptor(MANIFEST, manifest.sha256, manifest.size, artifact_type=artifact_type)
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [described.to_json()]}
        (self._folder / "index.json").write_bytes(canonical_json(index))
        (self._folder / "oci-layout").write_bytes(canonical_json({"imageLayoutVersion": "1.0.0"}))
        return described


class _Hashed:
    """Passes writes on and hashes them."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._output.write(data)


def _written(output: BinaryIO, content: bytes) -> None:
    output.write(content)
