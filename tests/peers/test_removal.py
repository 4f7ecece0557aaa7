"""Images leave real registries, and take nothing of another image along."""

from __future__ import annotations

import anyio
import pytest

from supply_chain.registry import open_repository
from supply_chain.removal import blobs_in_use, parts_of, remove_blobs, remove_manifests
from tests.peers.registries import Registry
from tests.supply_chain.stored import SHARED, store

pytestmark = pytest.mark.peers


def test_an_image_goes_and_what_it_shares_stays(registry: Registry) -> None:
    async def run() -> None:
        async with open_repository(
            registry.host, f"{registry.owner}/removal", plain_http=True
        ) as repository:
            # go-containerregistry's keeps a tag whose manifest is deleted, and so the tag keeps the blobs.
            tag = None if registry.name == "referrers-registry" else "v1"
            old, new = await store(repository, "old", tag), await store(repository, "new", "v2")
            parts = await parts_of(repository, old.image)
            assert set(parts.referrers) == set(old.referrers)
            await remove_manifests(repository, parts)
            assert await remove_blobs(repository, parts.blobs, await blobs_in_use(repository, ()))
            for digest in (old.image, *old.referrers):
                assert await repository.manifests.find(digest) is None
            for blob in old.blobs:
                assert not await repository.has_blob(blob)
            for blob in (*new.blobs, *SHARED):
                assert await repository.has_blob(blob)
            assert await repository.referrers.list(old.image) == []
            assert await repository.manifests.resolve("v1") is None
            assert await repository.manifests.resolve("v2") == new.image
            assert {one.descriptor.digest for one in await repository.referrers.list(new.image)} == set(
                new.referrers
            )

    anyio.run(run)
