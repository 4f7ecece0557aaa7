"""A platform on which something of everything has happened."""

from __future__ import annotations

import hashlib
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server.states import Status, Transition, move
from platform_server.tables import Delivery, NodePlatform, Publication, Webhook
from platform_server.upload_files import file_of
from tests.platform_server.clock import START, Clock
from tests.platform_server.fleet import Fleet
from tests.platform_server.rows import publication
from tests.platform_server.verifying import Trial

SECRET = "pndis_secret"


def live(trial: Trial, clock: Clock) -> Trial:
    """Publications that are published, failed, a duplicate, purged and queued."""
    fleet = Fleet(trial, clock)
    fleet.later()
    trial.report(trial.images.ref("third"))
    assert trial.work()
    trial.verify(trial.images.ref("missing"))
    trial.report(trial.images.ref("third"))

    def delivered(on: Session) -> None:
        """What the webhook itself would have written beside these rows."""
        hook = on.get_one(Webhook, trial.webhook_id)
        hook.secret = trial.platform.sealer.seal(SECRET, f"webhook {hook.id}")
        rows = on.scalars(select(Publication.id)).all()
        hook.received_count = len(rows)
        for each in rows:
            key, body = f"id:{each}", "0" * 64
            on.add(
                Delivery(
                    webhook_id=hook.id,
                    delivery_key=key,
                    body_sha256=body,
                    publication_id=each,
                    created_at=START,
                )
            )

    trial.write(delivered)
    return trial


def upload(trial: Trial, content: bytes, *, arrived: bool = True) -> UUID:
    """A publication that waits for its upload, and its bytes, if they have arrived."""

    def work(on: Session) -> UUID:
        owner = on.get_one(NodePlatform, trial.node_platform.id)
        sha256, at = hashlib.sha256(content).hexdigest(), trial.clock()
        row = publication(on, at, owner, oci_ref=None, upload_sha256=sha256, upload_size_bytes=len(content))
        assert row.status is Status.QUEUED
        move(row, Transition.AWAIT_UPLOAD, at)
        return row.id

    publication_id = trial.write(work)
    if arrived:
        file_of(trial.platform, publication_id).write_bytes(content)
    return publication_id
