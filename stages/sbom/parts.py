"""The parts of an image that are no Debian packages: the image, its kernel, its initramfs, its root."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from stages.sbom import cpio, spdx
from stages.sbom.copyright import Declared
from stages.sbom.spdx import Element, Purpose
from stages.shared import canonical_tar, purl
from stages.shared.job import Failure

_MEDIA = "application/vnd.powernode.disk_image."
_KERNEL, _INITRAMFS, _ROOT = f"{_MEDIA}kernel.v1", f"{_MEDIA}initramfs.v1+zstd", "application/vnd.erofs"
_TITLE = "org.opencontainers.image.title"
_FSVERITY = "containers.composefs.fsverity"
# Linux, COPYING.
_LINUX = Declared("GPL-2.0-only WITH Linux-syscall-note")
_OURS = Declared("Apache-2.0")
_INIT = "usr/lib/disk-image/initramfs/"
# An initramfs is unpacked into memory at boot; more than this is none.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Image:
    """The elements that every image has, and the initramfs's own parts; `paths` are its files."""

    image: Element
    kernel: Element
    initramfs: Element
    root: Element
    init: Element
    modules: tuple[Element, ...]
    paths: frozenset[str]


def describe(name: str, arch: str, manifest: bytes, release: str, initramfs: bytes) -> Image:
    """The image whose manifest this is. Raises Failure when it has no such kernel, initramfs or root."""
    layers = _layers(manifest)
    kernel, packed, root = (_layer(layers, kind) for kind in (_KERNEL, _INITRAMFS, _ROOT))
    found = f"sha256:{hashlib.sha256(initramfs).hexdigest()}"
    if packed["digest"] != found:
        raise Failure(
            f"initramfs: expected {packed['digest']}, as the manifest says, found {found}",
            "image and initramfs are of different builds; build again",
        )
    contents = dict(cpio.files(_decompressed(initramfs)))
    digest = hashlib.sha256(manifest).hexdigest()
    return Image(
        image=Element(
            id="SPDXRef-Image",
            name=name,
            version=f"sha256:{digest}",
            purl=purl.oci(name, f"sha256:{digest}", arch),
            sha256=digest,
            purpose=Purpose.OPERATING_SYSTEM,
            comment="The checksum is of the image's OCI manifest.",
        ),
        kernel=_part("Kernel", "linux", kernel, release, _LINUX),
        initramfs=_part("Initramfs", "initramfs", packed, None),
        root=_part("Root", "root", root, root["annotations"][_FSVERITY]),
        init=Element(
            id="SPDXRef-Init", name="disk-image-init", version=_init_version(contents), license=_OURS
        ),
        modules=tuple(
            _module(posixpath.basename(path), content, release)
            for path, content in contents.items()
            if path.endswith(".ko")
        ),
        paths=frozenset(contents),
    )


def kernel_modules(tree: Path, kernel: Element) -> Element | None:
    """The kernel's modules in the root, from the kernel stage's tar of them; None when there are none."""
    if not any(".ko" in posixpath.basename(entry.path) for entry, _ in canonical_tar.read(tree)):
        return None
    return Element(
        id="SPDXRef-Modules",
        name="linux-modules",
        version=kernel.version,
        purpose=Purpose.OPERATING_SYSTEM,
        license=kernel.license,
    )


def _part(
    id: str, name: str, layer: Mapping[str, Any], version: str | None, license: Declared | None = None
) -> Element:
    return Element(
        id=f"SPDXRef-{id}",
        name=name,
        version=version,
        sha256=layer["digest"].removeprefix("sha256:"),
        file_name=layer["annotations"][_TITLE],
        purpose=Purpose.ARCHIVE if license is None else Purpose.OPERATING_SYSTEM,
        license=license or Declared(),
    )


def _module(name: str, content: bytes, release: str) -> Element:
    digest = hashlib.sha256(content).hexdigest()
    return Element(
        id=spdx.identifier("Module", name, digest=digest),
        name=name,
        version=release,
        sha256=digest,
        purpose=Purpose.FILE,
    )


def _init_version(contents: Mapping[str, bytes]) -> str:
    """The program has no releases: what it is made of names it."""
    parts = [[path, hashlib.sha256(content).hexdigest()] for path, content in sorted(contents.items())]
    own = [part for part in parts if part[0] == "init" or part[0].startswith(_INIT)]
    return hashlib.sha256(json.dumps(own, separators=(",", ":")).encode()).hexdigest()


def _layers(manifest: bytes) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = json.loads(manifest)["layers"]
    return layers


def _layer(layers: list[dict[str, Any]], media_type: str) -> dict[str, Any]:
    found = [layer for layer in layers if layer["mediaType"] == media_type]
    if len(found) != 1:
        raise Failure(
            f"the image's manifest: expected one layer of type {media_type}, found {len(found)}",
            "build the image again",
        )
    return found[0]


def _decompressed(initramfs: bytes) -> bytes:
    size = zstandard.frame_content_size(initramfs)
    if not 0 <= size <= _MOST_BYTES:
        raise Failure(
            f"initramfs: expected one zstd frame of at most {_MOST_BYTES} bytes, found one of {size}",
            "build the initramfs again",
        )
    return zstandard.ZstdDecompressor(max_window_size=1 << 23).decompress(initramfs, allow_extra_data=False)
