"""A platform with a registry, a signer and real verification, driven a step at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import anyio
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from platform_server import worker
from platform_server.state_folder import Platform
from platform_server.tables import Event, Job, NodePlatform, Publication, Webhook
from platform_server.verifier import Verifier, verifier_of
from tests.platform_server.clock import Clock
from tests.platform_server.images import Images
from tests.platform_server.rows import node_platform, queued
from tests.supply_chain.verify.forge import IDENTITY, ISSUER

_Result = TypeVar("_Result")
POLICY: dict[str, Any] = {
    "cosign_identity_regexp": "https://git[.]example/org/.+",
    "cosign_issuer_regexp": ISSUER,
}
assert IDENTITY.startswith("https://git.example/org/")


@dataclass
class Trial:
    """What a test needs to have an image verified."""

    platform: Platform
    images: Images
    verifier: Verifier
    node_platform: NodePlatform
    webhook_id: UUID
    count: int = field(default=0)

    def report(self, oci_ref: str | None = None, **columns: Any) -> UUID:
        """A publication as the webhook makes it."""
        self.count += 1
        values = {
            "account_id": self.node_platform.account_id,
            "node_platform_id": self.node_platform.id,
            "webhook_id": self.webhook_id,
            "oci_ref": oci_ref or self.images.ref(),
            **columns,
        }
        return self.write(lambda on: queued(on, self.platform.clock(), **values))

    def work(self) -> bool:
        """One turn of a worker."""
        return anyio.run(worker.work, self.platform, self.verifier)

    def verify(self, oci_ref: str | None = None, **columns: Any) -> Publication:
        """Report an image and have it verified: what became of it."""
        publication_id = self.report(oci_ref, **columns)
        assert self.work()
        return self.row(publication_id)

    def refused(self, reason: str, oci_ref: str | None = None, **columns: Any) -> str:
        """The same for an image that is refused: the error."""
        row = self.verify(oci_ref, **columns)
        assert (row.status, row.cosign_verified) == ("failed", False)
        assert row.error_message is not None
        assert row.error_message.startswith(f"{reason}: "), row.error_message
        return row.error_message

    def due(self) -> datetime | None:
        """When the next job is or becomes due."""
        return self.read(lambda on: on.scalar(select(func.min(Job.available_at))))

    def exhausted(self, oci_ref: str | None = None) -> str:
        """The error of an image that no attempt came to a verdict about."""
        publication_id = self.report(oci_ref)
        for _ in range(self.platform.settings.schedule.attempts):
            assert self.work()
            self.clock.pass_by(hours=1)
        row = self.row(publication_id)
        assert row.status == "failed"
        assert row.error_message is not None
        assert row.error_message.startswith("unavailable: no verdict after 5 attempts: "), row.error_message
        return row.error_message

    @property
    def clock(self) -> Clock:
        """The platform's."""
        assert isinstance(self.platform.clock, Clock)
        return self.platform.clock

    def row(self, publication_id: UUID) -> Publication:
        return self.read(lambda on: on.get_one(Publication, publication_id))

    def events(self) -> list[Event]:
        """All events, the oldest first."""
        return self.read(lambda on: list(on.scalars(select(Event).order_by(Event.id))))

    def platform_row(self) -> NodePlatform:
        return self.read(lambda on: on.get_one(NodePlatform, self.node_platform.id))

    def change(self, **fields: Any) -> None:
        """Other settings of the node platform."""

        def work(session: Session) -> None:
            row = session.get_one(NodePlatform, self.node_platform.id)
            for name, value in fields.items():
                setattr(row, name, value)

        self.write(work)

    def read(self, work: Callable[[Session], _Result]) -> _Result:
        return self.platform.database.read_now(work)

    def write(self, work: Callable[[Session], _Result]) -> _Result:
        return self.platform.database.write_now(work)


def trial(platform: Platform, images: Images) -> Trial:
    """The platform, with a node platform that trusts the images' signer and registry."""
    at = platform.clock()

    def make(session: Session) -> tuple[NodePlatform, UUID]:
        row = node_platform(session, at, trusted_registries=[images.server.host], **POLICY)
        webhook = Webhook(
            account_id=row.account_id,
            label="pipeline",
            label_key="pipeline",
            secret=b"",
            secret_preview="",
            created_at=at,
            updated_at=at,
        )
        session.add(webhook)
        session.flush()
        return row, webhook.id

    row, webhook_id = platform.database.write_now(make)
    return Trial(platform, images, verifier_of(images.forge.trust.path), row, webhook_id)
