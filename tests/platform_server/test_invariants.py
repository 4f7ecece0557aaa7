"""The checker of what must hold finds each thing that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.orm import Session

from platform_server.identifiers import new_id
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Delivery, Event, Job, NodePlatform, Publication, Purge, Webhook
from tests.platform_server.api import Pipeline
from tests.platform_server.clock import START, Clock
from tests.platform_server.invariants import broken
from tests.platform_server.lived import live
from tests.platform_server.verifying import Trial


@pytest.fixture
def lived(trial: Trial, clock: Clock) -> Trial:
    """A platform with publications that are published, failed, a duplicate, purged and queued."""
    return live(trial, clock)


def test_a_platform_that_has_lived_breaks_nothing(lived: Trial) -> None:
    assert broken(lived.platform) == []


def _publications(**columns: Any) -> Callable[[Session], object]:
    """Other columns on every publication in a state, past the rules of this program."""
    status = columns.pop("of")
    return lambda on: on.execute(update(Publication).where(Publication.status == status).values(**columns))


def _twice_published(on: Session) -> None:
    on.execute(text("DROP INDEX uq_publications_image"))
    on.execute(text("DROP INDEX uq_publications_commit"))
    table = Publication.__table__
    row = on.execute(select(table).where(table.c.status == "published")).mappings().first()
    assert row is not None
    on.execute(insert(Publication), {**row, "id": new_id()})


BREAKS: dict[str, Callable[[Session], object]] = {
    "stamps": _publications(of=Status.FAILED, failed_at=None),
    "verified": _publications(of=Status.PUBLISHED, sbom_digest=None),
    "one_image_a_commit": _twice_published,
    "jobs": lambda on: on.execute(delete(Job)),
    "outcomes": lambda on: on.execute(delete(Event)),
    "duplicates": lambda on: on.execute(
        update(Publication).where(Publication.duplicate_of_id.is_not(None)).values(oci_digest="sha256:0")
    ),
    "defaults": lambda on: on.execute(update(NodePlatform).values(default_publication_id=None)),
    "purges": lambda on: on.execute(
        insert(Purge),
        {
            "id": on.scalars(select(Publication.id).where(Publication.status == Status.PUBLISHED)).first(),
            "created_at": START,
            "referrers": [],
            "blobs": [],
        },
    ),
    "secrets": lambda on: on.execute(update(Webhook).values(secret=b"sealed with another key")),
    "uploads": _publications(of=Status.PUBLISHED, upload_sha256="0" * 64, upload_size_bytes=1),
}


@pytest.mark.parametrize("rule", BREAKS)
def test_what_does_not_hold_is_found(lived: Trial, rule: str) -> None:
    lived.write(BREAKS[rule])
    assert rule in {line.partition(":")[0] for line in broken(lived.platform)}


def test_a_delivery_that_is_lost_is_found(platform: Platform, pipeline: Pipeline) -> None:
    assert pipeline.standard().status_code == 202
    assert broken(platform) == []
    platform.database.write_now(lambda on: on.execute(delete(Delivery)))
    assert [line.partition(":")[0] for line in broken(platform)] == ["deliveries"]
