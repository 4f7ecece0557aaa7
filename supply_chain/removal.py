"""Removing an image from a registry: its manifest, what hangs on it, and the blobs nobody else refers to.

    1. `parts_of` reads what the image is made of, while it is still there.
    2. `remove_manifests` deletes the image first, so that a registry that forbids deleting leaves it whole;
       then its referrers, then the index under its referrers tag.
    3. `blobs_in_use` reads what every tag, and every image that is still wanted, refers to.
    4. `remove_blobs` deletes the rest.

Every step can be repeated. Registries offer no transaction: whoever pushes an image between 3 and 4, and
finds a blob there that goes in 4, has to push again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from supply_chain.errors import BrokenAnswer, Rejected
from supply_chain.oci import DOCKER_INDEX, DOCKER_MANIFEST, INDEX, MANIFEST, parse_index, parse_manifest
from supply_chain.registry import Document, Repository
from supply_chain.registry.referrers import MOST_REFERRERS, fallback_tag

# How a registry says that it deletes manifests but collects blobs by itself.
_NO_BLOB_DELETE = 405


@dataclass(frozen=True, slots=True)
class Parts:
    """An image by its digests: the manifest, its referrers and theirs, and all of their blobs."""

    image: str
    referrers: tuple[str, ...]
    blobs: tuple[str, ...]


async def parts_of(repository: Repository, image: str) -> Parts:
    """Read an image's parts; those of one that is gone already are what hangs on it."""
    blobs: dict[str, None] = {}
    referrers: dict[str, None] = {}
    document = await repository.manifests.find(image)
    if document is not None:
        manifest = parse_manifest(document.content, f"manifest {image}")
        blobs |= dict.fromkeys(blob.digest for blob in manifest.blobs)
    pending = [image]
    while pending:
        for referrer in await repository.referrers.list(pending.pop()):
            digest = referrer.descriptor.digest
            if digest in referrers:
                continue
            if len(referrers) == MOST_REFERRERS:
                raise BrokenAnswer(
                    f"manifest {image}: more than {MOST_REFERRERS} referrers", "remove those nobody needs"
                )
            referrers[digest] = None
            blobs |= dict.fromkeys(blob.digest for blob in referrer.manifest.blobs)
            pending.append(digest)
    return Parts(image, tuple(referrers), tuple(blobs))


async def remove_manifests(repository: Repository, parts: Parts) -> None:
    """Step 2. Raises Rejected or AccessDenied, with nothing deleted, when the registry forbids it."""
    for digest in (parts.image, *parts.referrers):
        await repository.manifests.delete(digest)
    for digest in (parts.image, *parts.referrers):
        index = await repository.manifests.resolve(fallback_tag(digest))
        if index is not None:
            await repository.manifests.delete(index)


async def blobs_in_use(repository: Repository, wanted: Iterable[str]) -> frozenset[str]:
    """Every blob that a tag, or an image of the digests `wanted`, or a referrer of one of these refers to.

    Raises BrokenAnswer for a document that does not say what it refers to.
    """
    used: set[str] = set()
    seen: set[str] = set()
    pending = [*wanted, *await repository.tags()]
    while pending:
        target = pending.pop()
        if target in seen:
            continue
        seen.add(target)
        document = await repository.manifests.find(target)
        if document is None:
            continue
        digest = document.descriptor.digest
        if digest != target and digest in seen:
            continue
        seen.add(digest)
        children, blobs = _refers_to(document, target)
        used |= blobs
        pending += children
        pending += [entry.digest for entry in await repository.referrers.entries(digest)]
    return frozenset(used)


async def remove_blobs(repository: Repository, blobs: Iterable[str], used: Collection[str]) -> bool:
    """Delete those that are not used; False when the registry deletes no blobs, but collects them itself."""
    for digest in blobs:
        if digest in used:
            continue
        try:
            await repository.delete_blob(digest)
        except Rejected as error:
            if error.status == _NO_BLOB_DELETE:
                return False
            raise
    return True


def _refers_to(document: Document, target: str) -> tuple[list[str], set[str]]:
    """The manifests and the blobs in a document."""
    kind, what = document.descriptor.media_type, f"manifest {target}"
    if kind in (INDEX, DOCKER_INDEX):
        return [entry.digest for entry in parse_index(document.content, what).manifests], set()
    if kind in (MANIFEST, DOCKER_MANIFEST):
        return [], {blob.digest for blob in parse_manifest(document.content, what).blobs}
    raise BrokenAnswer(
        f"{what}: {kind[:80]}: which blobs it refers to can't be told", f"delete the tag {target}"
    )
