"""Images in a registry that share a layer, each with two referrers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.definition import canonical_json
from supply_chain.oci import EMPTY, EMPTY_CONTENT, MANIFEST, Descriptor, describe
from supply_chain.registry import Repository, read_bytes

COMMON = b"a layer of every image"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@dataclass(frozen=True)
class Stored:
    """An image's digests; `blobs` are those that no other image has."""

    image: str
    referrers: tuple[str, ...]
    blobs: tuple[Descriptor, ...]

    @property
    def own(self) -> frozenset[str]:
        """The digests of `blobs`."""
        return frozenset(blob.digest for blob in self.blobs)


SHARED = (describe(COMMON, "application/octet-stream"), describe(EMPTY_CONTENT, EMPTY))


async def store(repository: Repository, name: str, tag: str | None = None) -> Stored:
    """Push an image whose contents come from its name."""
    layer, config = f"layer of {name}".encode(), f"configuration of {name}".encode()
    blobs = [config, COMMON, layer]
    described = [describe(blob, "application/octet-stream") for blob in blobs]
    content = manifest(
        config=described[0].to_json(),
        layers=[each.to_json() for each in described[1:]],
        artifactType="a/image",
    )
    for blob, descriptor in zip(blobs, described, strict=True):
        await repository.upload(descriptor, read_bytes(blob))
    image = await repository.manifests.put(content, MANIFEST, tag)
    empty = describe(EMPTY_CONTENT, EMPTY)
    await repository.upload(empty, read_bytes(EMPTY_CONTENT))
    referrers, own = [], [described[0], described[2]]
    for number in range(2):
        bundle = f"bundle {number} of {name}".encode()
        described_bundle = describe(bundle, BUNDLE)
        await repository.upload(described_bundle, read_bytes(bundle))
        own.append(described_bundle)
        attached = await repository.referrers.attach(
            manifest(
                config=empty.to_json(),
                layers=[described_bundle.to_json()],
                artifactType=BUNDLE,
                subject=describe(content, MANIFEST).to_json(),
            )
        )
        referrers.append(attached.digest)
    return Stored(image, tuple(referrers), tuple(own))


def manifest(**fields: Any) -> bytes:
    """A manifest of these fields."""
    return canonical_json({"schemaVersion": 2, "mediaType": MANIFEST, **fields})
