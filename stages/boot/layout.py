"""Reading an image from its OCI layout: only what a boot needs, and nothing unverified.

OCI image-spec: image-layout.md, manifest.md, descriptor.md; the image's own media types: docs/reference.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.shared.job import Failure

_MEDIA = "application/vnd.powernode.disk_image."
_KERNEL = _MEDIA + "kernel.v1"
_INITRAMFS = _MEDIA + "initramfs.v1+zstd"
_METADATA = "application/vnd.erofs"
_OBJECTS = _MEDIA + "objects.v1+zstd"
_CONFIG = _MEDIA + "config.v1+json"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_HEX = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
_MOST_JSON = 4 << 20
_HINT = "build the image again, or fetch the layout again"


@dataclass(frozen=True, slots=True)
class Image:
    """What a layout's image boots with. `digest` is the fs-verity sha256 of `metadata`, hex, as the config
    states it.
    """

    manifest_digest: str
    arch: str
    command_line: str
    digest: str
    kernel: Path
    initramfs: Path
    metadata: Path
    packs: tuple[Path, ...]


def read(layout: Path) -> Image:
    """The first manifest of index.json, every blob of it checked. Raises Failure naming the blob or field
    that is wrong.
    """
    version = _json(_bytes(layout / "oci-layout"), "oci-layout").get("imageLayoutVersion")
    if version != "1.0.0":
        raise Failure(f"oci-layout: expected imageLayoutVersion 1.0.0, found {version!r}", _HINT)
    manifests = _json(_bytes(layout / "index.json"), "index.json").get("manifests")
    if not isinstance(manifests, list) or not manifests:
        raise Failure("index.json: expected at least one manifest, found none", _HINT)
    manifest_path, manifest_digest = _blob(layout, manifests[0], "index.json: manifests[0]")
    manifest = _json(_bytes(manifest_path), "the manifest")
    config = _config(layout, manifest)
    layers: dict[str, list[Path]] = {}
    for number, descriptor in enumerate(_list(manifest, "layers")):
        path, _ = _blob(layout, descriptor, f"the manifest's layers[{number}]")
        layers.setdefault(str(descriptor.get("mediaType")), []).append(path)

    def one(media_type: str) -> Path:
        found = layers.get(media_type, [])
        if len(found) != 1:
            raise Failure(
                f"the manifest: expected one layer of type {media_type}, found {len(found)}", _HINT
            )
        return found[0]

    algorithm = _text(config, "fsverity_algorithm")
    if algorithm != "sha256":
        raise Failure(f"the config: expected fsverity_algorithm sha256, found {algorithm!r}", _HINT)
    digest = _text(config, "fsverity_digest")
    if not _HEX.fullmatch(digest):
        raise Failure(f"the config: expected fsverity_digest as 64 hex digits, found {digest[:80]!r}", _HINT)
    return Image(
        manifest_digest=manifest_digest,
        arch=_text(config, "arch"),
        command_line=_text(config, "cmdline"),
        digest=digest,
        kernel=one(_KERNEL),
        initramfs=one(_INITRAMFS),
        metadata=one(_METADATA),
        packs=tuple(layers.get(_OBJECTS, ())),
    )


def _config(layout: Path, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    descriptor = manifest.get("config")
    path, _ = _blob(layout, descriptor, "the manifest's config")
    found = descriptor.get("mediaType") if isinstance(descriptor, Mapping) else None
    if found != _CONFIG:
        raise Failure(f"the manifest: expected a config of type {_CONFIG}, found {found!r}", _HINT)
    return _json(_bytes(path), "the config")


def _blob(layout: Path, descriptor: Any, where: str) -> tuple[Path, str]:
    """The blob's path and digest, after its size and sha256 were found to be what the descriptor says."""
    stated = descriptor if isinstance(descriptor, Mapping) else {}
    matched = _DIGEST.fullmatch(str(stated.get("digest")))
    if matched is None:
        raise Failure(f"{where}: expected a sha256 digest, found {str(stated.get('digest'))[:80]!r}", _HINT)
    path = layout / "blobs" / "sha256" / matched[1]
    hasher = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
                size += len(chunk)
    except FileNotFoundError:
        raise Failure(f"{where}: expected the blob {path.name}, found none", _HINT) from None
    if hasher.hexdigest() != matched[1] or size != stated.get("size"):
        raise Failure(
            f"{where}: expected sha256:{matched[1]} of {stated.get('size')} bytes, "
            f"found sha256:{hasher.hexdigest()} of {size}",
            _HINT,
        )
    return path, matched[0]


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_JSON + 1)
    except FileNotFoundError:
        raise Failure(
            f"expected the file {path.name} in the layout, found none", "name an OCI layout's folder"
        ) from None
    if len(content) > _MOST_JSON:
        raise Failure(f"{path.name}: expected at most {_MOST_JSON} bytes of JSON", _HINT)
    return content


def _json(content: bytes, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Failure(f"{where}: expected JSON: {error}", _HINT) from None
    if not isinstance(value, dict):
        raise Failure(f"{where}: expected a JSON object, found {type(value).__name__}", _HINT)
    return value


def _list(value: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = value.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Failure(f"the manifest: expected a list of descriptors as {name}", _HINT)
    return found


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or not found:
        raise Failure(f"the config: expected a text as {name}, found {found!r}", _HINT)
    return found
