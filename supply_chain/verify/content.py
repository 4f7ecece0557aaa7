"""What is there: the image's manifest, configuration, build manifest and layers, each as the others say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from supply_chain.errors import VerificationError
from supply_chain.image import (
    BUILD_MANIFEST,
    METADATA,
    BuildManifest,
    ImageConfig,
    build_manifest,
    image_config,
    image_manifest,
    layer,
    layers_by_title,
)
from supply_chain.oci import DOCUMENT_LIMIT, Descriptor, Manifest, digest_of
from supply_chain.registry import Document
from supply_chain.registry.parallel import side_by_side
from supply_chain.verify.source import Source

# Layers under way at once.
_PARALLEL = 4
_HINT = "don't boot it; push or pull the image anew, and see who changed it"


@dataclass(frozen=True, slots=True)
class Content:
    """An image whose documents agree. `layers` are by title; `layers_read` says whether their content was
    read, and so is of its digests too.
    """

    digest: str
    manifest: Manifest
    layers: Mapping[str, Descriptor]
    config: ImageConfig
    build_manifest: BuildManifest
    layers_read: bool

    @property
    def size(self) -> int:
        """Of all blobs together, in bytes."""
        return sum(blob.size for blob in self.manifest.blobs)


def read_manifest(document: Document) -> Manifest:
    """The image's manifest, of the digest that it was asked for by. Raises VerificationError and
    InvalidDocument.
    """
    digest, content = document.descriptor.digest, document.content
    if (found := digest_of(content)) != digest:
        raise differs("manifest", f"bytes with the digest {digest}", found)
    return image_manifest(content, f"manifest {digest}")


async def read_content(source: Source, digest: str, manifest: Manifest, *, read_layers: bool) -> Content:
    """Read configuration and build manifest, and with `read_layers` everything; without, each layer must be
    there by the source's word.
    """
    layers = layers_by_title(manifest, f"manifest {digest}")
    configuration = await source.read(manifest.config, DOCUMENT_LIMIT)
    config = image_config(configuration, layers, "configuration")
    listed = await source.read(layer(layers, BUILD_MANIFEST, "image"), DOCUMENT_LIMIT)
    built = build_manifest(listed, layers, config, BUILD_MANIFEST)

    async def check(title: str) -> None:
        each = layers[title]
        if title == METADATA and read_layers:
            await _measure(source, each, config.fsverity_digest)
        elif read_layers:
            await source.check(each)
        elif not await source.has(each):
            raise differs(f"layer {title}", f"{each.digest} of {each.size} bytes", "no such blob")

    await side_by_side(_PARALLEL, layers, check)
    return Content(digest, manifest, layers, config, built, read_layers)


def differs(what: str, expected: str, found: str, hint: str = _HINT) -> VerificationError:
    """The error of a comparison."""
    return VerificationError(
        f"{what}: expected {expected}, found {found}", hint, expected=expected, found=found
    )


async def _measure(source: Source, metadata: Descriptor, expected: str) -> None:
    """The kernel trusts the root by this digest; a node would find out at boot that it is another one."""
    from stages.shared.fsverity import Hasher

    hasher = Hasher()
    await source.read_through(metadata, hasher.update)
    if (found := hasher.merkle().digest) != expected:
        raise differs(f"{METADATA}: fs-verity digest", expected, found)
