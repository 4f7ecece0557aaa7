"""The purger: deletes the images of retired publications from their registries.

For each repository of a platform's: read what an image is made of, promise to delete it (`purge.begin`),
delete its manifests; then find out once which blobs are still in use, and delete the others. A failure stops
one image, or all that wait for the repository's blobs, and the next sweep takes up what was left.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from anyio import to_thread

from platform_server import purge, upload_files
from platform_server.purge import Due
from platform_server.registries import open_trusted
from platform_server.state_folder import Platform
from platform_server.tables import NodePlatform
from supply_chain.errors import AccessDenied, Rejected, SupplyChainError
from supply_chain.reference import parse_reference
from supply_chain.registry import Repository
from supply_chain.removal import Parts, blobs_in_use, parts_of, remove_blobs, remove_manifests

log = logging.getLogger(__name__)

# Rows in memory; which of their blobs are in use is asked once for all of them.
_AT_A_TIME = 1000
_GONE = "deleted"
_BLOBS_LEFT = "deleted; its registry collects the blobs itself"
_NEVER_TAKEN = "left alone: it was never taken"


@dataclass(frozen=True, slots=True)
class _Begun:
    publication_id: UUID
    parts: Parts


async def purge_due(platform: Platform, node_platform: NodePlatform, before: datetime) -> tuple[int, int]:
    """Purge what was retired by then: how many are purged, and how many of those that are due are not.

    What can't be deleted is marked and told, never raised.
    """
    due = await platform.database.read(lambda on: purge.due(on, node_platform, before))
    purged = 0
    for first in range(0, len(due), _AT_A_TIME):
        purged += await _purge(platform, node_platform, due[first : first + _AT_A_TIME], before)
    return purged, len(due) - purged


async def _purge(
    platform: Platform, node_platform: NodePlatform, ids: Sequence[UUID], before: datetime
) -> int:
    """Purge these; how many are purged by then."""
    found = await platform.database.read(lambda on: purge.read(on, ids))
    by_repository: dict[str, list[Due]] = defaultdict(list)
    for each in found:
        repository = purge.repository_of(each.row)
        if each.row.published_at is None:
            await _finish(platform, each.row.id, _NEVER_TAKEN)
        elif repository is None:
            await _upload(platform, each, before)
        else:
            by_repository[repository].append(each)
    for name, waiting in by_repository.items():
        await _Repository(platform, node_platform, name, before).purge(waiting)
    return await platform.database.read(lambda on: purge.count_purged(on, ids))


async def _upload(platform: Platform, each: Due, before: datetime) -> None:
    """An image that was uploaded is this publication's alone."""
    parts = Parts(each.row.oci_digest or "", (), ())
    publication_id = each.row.id
    if await platform.database.write(
        lambda on: purge.begin(on, publication_id, parts, before, platform.clock())
    ):
        await to_thread.run_sync(upload_files.remove, platform, publication_id)
        await _finish(platform, publication_id, _GONE)


async def _finish(platform: Platform, publication_id: UUID, image: str) -> None:
    await platform.database.write(lambda on: purge.finish(on, publication_id, platform.clock(), image=image))
    log.info("publication %s: purged, image %s", publication_id, image)


class _Repository:
    """The purges of one platform in one repository."""

    def __init__(self, platform: Platform, node_platform: NodePlatform, name: str, before: datetime) -> None:
        self._platform = platform
        self._node_platform = node_platform
        self._name = name
        self._before = before

    async def purge(self, waiting: Sequence[Due]) -> None:
        """All of them, as far as the registry lets it be."""
        left = {each.row.id for each in waiting}
        reference = parse_reference(waiting[0].row.oci_ref or "")
        try:
            async with open_trusted(
                reference, self._node_platform.trusted_registries, self._platform.settings.registries
            ) as repository:
                begun: list[_Begun] = []
                for each in waiting:
                    left.discard(each.row.id)
                    begun += await self._manifests(repository, each)
                await self._blobs(repository, begun)
        except SupplyChainError as error:
            for publication_id in left:
                await self._block(publication_id, error, is_whole=False)

    async def _manifests(self, repository: Repository, each: Due) -> list[_Begun]:
        """Delete one image's manifests; nothing when that is not to be, or was not possible."""
        publication_id, image = each.row.id, each.row.oci_digest
        assert image is not None, "a published image has a digest"
        try:
            parts = each.parts or await parts_of(repository, image)
            if not await self._platform.database.write(
                lambda on: purge.begin(on, publication_id, parts, self._before, self._platform.clock())
            ):
                return []
            await remove_manifests(repository, parts)
        except SupplyChainError as error:
            await self._block(publication_id, error, is_whole=await _is_whole(repository, image, error))
            return []
        return [_Begun(publication_id, parts)]

    async def _blobs(self, repository: Repository, begun: Sequence[_Begun]) -> None:
        """Delete the blobs of images whose manifests are gone, unless something refers to them."""
        if not begun:
            return
        going = {each.parts.image for each in begun}
        left = {each.publication_id for each in begun}
        try:
            wanted = await self._platform.database.read(lambda on: purge.wanted(on, self._name, going))
            used = await blobs_in_use(repository, wanted)
            for each in begun:
                deleted = await remove_blobs(repository, each.parts.blobs, used)
                await _finish(self._platform, each.publication_id, _GONE if deleted else _BLOBS_LEFT)
                left.discard(each.publication_id)
        except SupplyChainError as error:
            for publication_id in left:
                await self._block(publication_id, error, is_whole=False)

    async def _block(self, publication_id: UUID, error: SupplyChainError, *, is_whole: bool) -> None:
        log.warning("publication %s: its purge is blocked: %s", publication_id, error.what)
        await self._platform.database.write(
            lambda on: purge.block(on, publication_id, error.what, self._platform.clock(), is_whole=is_whole)
        )


async def _is_whole(repository: Repository, image: str, error: SupplyChainError) -> bool:
    """Whether a registry that refuses to delete has nothing deleted: the image is the first to go."""
    if not isinstance(error, Rejected | AccessDenied):
        return False
    try:
        return await repository.manifests.find(image) is not None
    except SupplyChainError:
        return False
