"""Published images of one node platform in a registry, of which fewer are to be kept."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import anyio

from platform_server import sweeps
from platform_server.states import Status
from supply_chain.oci import INDEX, MANIFEST, Index, describe, digest_of
from supply_chain.registry.referrers import fallback_tag
from tests.platform_server.clock import Clock
from tests.platform_server.images import REPOSITORY
from tests.platform_server.verifying import Trial
from tests.supply_chain.registry_server import Repo
from tests.supply_chain.verify.signed_image import Signed

SWEPT = "system.disk_image_retention_swept"


class Fleet:
    """Three published images of one platform, the last one its default, of which one is kept."""

    def __init__(self, trial: Trial, clock: Clock) -> None:
        self.trial, self.clock = trial, clock
        trial.change(disk_image_retention_count=3)
        self.signed: list[Signed] = []
        self.ids: list[UUID] = []
        for name in ("first", "second", "third"):
            self.add(name)
        trial.change(disk_image_retention_count=1)

    def add(self, name: str) -> UUID:
        """Publish another one and make it the default."""
        self.clock.pass_by(minutes=1)
        self.signed.append(self.trial.images.push(name, name, commit=f"{len(self.ids):040x}"))
        row = self.trial.verify(self.trial.images.ref(name))
        assert row.status is Status.PUBLISHED, row.error_message
        self.ids.append(row.id)
        self.trial.change(default_publication_id=row.id)
        return row.id

    def sweep(self) -> sweeps.Swept:
        platform = self.trial.platform
        return anyio.run(
            sweeps.sweep, platform, self.trial.node_platform.id, platform.settings.schedule.grace
        )

    def later(self) -> sweeps.Swept:
        """Sweep, wait for a week and sweep."""
        self.sweep()
        self.clock.pass_by(days=8)
        return self.sweep()

    def status(self) -> list[str]:
        return [self.trial.row(each).status for each in self.ids]

    def tag_referrers(self) -> None:
        """The indexes that a registry without the referrers API has."""
        for signed in self.signed:
            digest = signed.image.digest
            entries = [
                describe(content, MANIFEST)
                for _, content in self.repo.manifests.values()
                if json.loads(content).get("subject", {}).get("digest") == digest
            ]
            content = Index(manifests=tuple(entries)).to_bytes()
            self.repo.manifests[digest_of(content)] = (INDEX, content)
            self.repo.tags[fallback_tag(digest)] = digest_of(content)

    @property
    def repo(self) -> Repo:
        return self.trial.images.server.repo(REPOSITORY)

    def is_whole(self, number: int) -> bool:
        """Whether nothing of an image is missing."""
        manifests, blobs = _parts(self.signed[number])
        return manifests <= self.repo.manifests.keys() and blobs <= self.repo.blobs.keys()

    def is_gone(self, number: int) -> bool:
        """Whether nothing is left that only this image has."""
        others = set().union(
            *(_parts(each)[1] for at, each in enumerate(self.signed) if at != number and self.is_whole(at))
        )
        manifests, blobs = _parts(self.signed[number])
        digest = self.signed[number].image.digest
        return (
            not manifests & self.repo.manifests.keys()
            and not (blobs - others) & self.repo.blobs.keys()
            and digest not in self.repo.tags.values()
            and fallback_tag(digest) not in self.repo.tags
        )

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event.payload for event in self.trial.events() if event.kind == kind]


def _parts(signed: Signed) -> tuple[set[str], set[str]]:
    """Digests of an image's manifests and blobs."""
    manifests, blobs = set(), set()
    for path, content in signed.files.items():
        if not path.startswith("blobs/"):
            continue
        if content.startswith(b"{") and "layers" in (loaded := json.loads(content)):
            manifests.add(digest_of(content))
            blobs |= {each["digest"] for each in (loaded["config"], *loaded["layers"])}
    return manifests, blobs
