"""How the database finds rows: by an index for whatever a list, a delivery or a worker asks, so that nothing
slows down as rows pile up.
"""

from __future__ import annotations

import re
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.orm import Session

from platform_server.identifiers import new_id
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Job, Publication
from tests.platform_server.api import Api, Pipeline
from tests.platform_server.clock import Clock
from tests.platform_server.plans import Step, plans
from tests.platform_server.rows import verified
from tests.platform_server.verifying import Trial

_OF_FEW = re.compile(r"publications\.status = (\?|%)")


def slow(found: dict[str, list[Step]]) -> list[str]:
    """What goes through a whole table, or sorts rows by hand."""
    return [
        f"{step.what}: {statement}"
        for statement, steps in found.items()
        for step in steps
        # What a platform has published is what it keeps, and never many.
        if step.is_scan or (step.is_sort and not _OF_FEW.search(statement))
    ]


def _fill(session: Session, template: Publication, count: int) -> None:
    """Many publications beside the first one."""
    common = {
        column.key: getattr(template, column.key)
        for column in Publication.__table__.columns
        if column.key not in ("id", "git_sha", "oci_digest", "status", "published_at")
    }
    rows = [
        {
            **common,
            **verified(number + 10),
            "id": new_id(),
            "status": Status.RETIRED if number % 2 else Status.FAILED,
            "published_at": template.created_at if number % 2 else None,
        }
        for number in range(count)
    ]
    session.execute(insert(Publication), rows)


def test_lists_and_deliveries(api: Api, pipeline: Pipeline, platform: Platform, platform_id: str) -> None:
    sent = pipeline.standard().json()["publication_id"]

    def fill(session: Session) -> None:
        template = session.get_one(Publication, UUID(sent))
        _fill(session, template, 3000)

    platform.database.write_now(fill)
    with plans(platform.database.engine) as found:
        for fields in (
            {},
            {"git_sha": "a" * 40},
            {"sha256": "b" * 64},
            {"git_sha": "c" * 40, "sha256": "d" * 64},
        ):
            pipeline.plain(**fields)
            pipeline.standard(**fields)
        path = f"/node_platforms/{platform_id}"
        api.get(path)
        for query in ({}, {"status": "published"}, {"status": "retired"}, {"before": sent}):
            api.get(f"{path}/disk_image_publications", **query)
        api.get("/node_platforms")
        api.get("/disk_image_webhooks")
        api.get("/events")
        api.get("/events", kind_prefix="system.disk_image_published")
    assert len(found) > 10
    assert "\n".join(slow(found)) == ""


def test_a_workers_turn(trial: Trial, clock: Clock) -> None:
    trial.images.push()
    first = trial.verify()

    def fill(session: Session) -> None:
        _fill(session, first, 3000)
        ids = [new_id() for _ in range(1000)]
        session.execute(
            insert(Publication),
            [
                {"id": each, "account_id": first.account_id, "node_platform_id": first.node_platform_id,
                 "correlation_id": "", "arch": "amd64", "payload": {}, "created_at": clock()}
                for each in ids
            ],
        )  # fmt: skip
        later = clock.pass_by(days=1)
        jobs = [{"id": each, "created_at": later, "available_at": later} for each in ids]
        session.execute(insert(Job), jobs)
        clock.pass_by(days=-1)

    trial.write(fill)
    trial.images.push("second", commit="2" * 40)
    trial.report()
    with plans(trial.platform.database.engine) as found:
        assert trial.work()
    assert len(found) > 5
    assert "\n".join(slow(found)) == ""
