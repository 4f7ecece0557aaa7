"""What a delivery costs the database: the same however much the platform has seen, whatever became of it."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from platform_server.identifiers import new_id
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Delivery, Job, Publication
from tests.platform_server.api import Pipeline
from tests.platform_server.clock import Clock
from tests.platform_server.rows import verified
from tests.platform_server.work import work

ROWS = 10_000
# A delivery finds at most a few rows by each index.
INSTRUCTIONS = 1000
READ = 60
SHA, DIGEST = f"{1:040x}", f"{1:064x}"


@pytest.mark.parametrize("status", [Status.QUEUED, Status.FAILED, Status.RETIRED, Status.PURGED])
def test_a_delivery_costs_the_same_after_many(
    pipeline: Pipeline, platform: Platform, clock: Clock, status: Status
) -> None:
    """Many commits and images of one platform; of what failed, one and the same again and again."""
    body_sha256 = hashlib.sha256(pipeline.body()).hexdigest()
    pipeline.standard()

    def fill(session: Session) -> None:
        template = session.scalars(select(Publication)).one()
        common: dict[str, Any] = {
            "account_id": template.account_id,
            "node_platform_id": template.node_platform_id,
            "webhook_id": template.webhook_id,
            "correlation_id": "",
            "arch": "amd64",
            "payload": {},
            "created_at": clock(),
            "status": status,
            "published_at": clock() if status in (Status.RETIRED, Status.PURGED) else None,
        }
        rows = [
            common | verified(1 if status is Status.FAILED else number + 10) | {"id": new_id()}
            for number in range(ROWS)
        ]
        session.execute(insert(Publication), rows)
        jobs = [{"id": row["id"], "created_at": clock(), "available_at": clock()} for row in rows]
        session.execute(insert(Job), jobs)
        delivered = [
            {
                "id": new_id(),
                "webhook_id": template.webhook_id,
                "delivery_key": f"id:{number}",
                "body_sha256": body_sha256,
                "publication_id": template.id,
                "created_at": clock() - timedelta(days=2),
            }
            for number in range(ROWS)
        ]
        session.execute(insert(Delivery), delivered)

    platform.database.write_now(fill)
    if not platform.database.is_sqlite:
        # as the server itself does after so many rows
        platform.database.write_now(lambda on: on.execute(text("ANALYZE")))
    most = INSTRUCTIONS if platform.database.is_sqlite else READ
    for fields in ({}, {"git_sha": SHA}, {"sha256": DIGEST}, {"git_sha": SHA, "sha256": DIGEST}):
        for send in (pipeline.plain, pipeline.standard):
            with work(platform.database) as done:
                answer = send(**fields)
            assert answer.status_code in (200, 202), answer.text
            assert len(done) >= 2
            assert max(each.cost for each in done) <= most, (fields, send, done)
