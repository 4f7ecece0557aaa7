"""Events: written with what they tell, and found by prefix and page."""

from __future__ import annotations

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session

from platform_server.events import Kind, Told, emit
from platform_server.identifiers import new_id
from platform_server.state_folder import Platform
from platform_server.tables import Event
from tests.platform_server.api import Api
from tests.platform_server.clock import Clock
from tests.platform_server.rows import first_account_id


def test_an_event_of_work_that_failed_is_not_there(platform: Platform, clock: Clock, api: Api) -> None:
    def work(session: Session) -> None:
        emit(session, first_account_id(session), Kind.PUBLISHED, {}, Told("test"), clock())
        raise KeyError

    with pytest.raises(KeyError):
        platform.database.write_now(work)
    assert api.get("/events")["events"] == []


def _fill(platform: Platform, clock: Clock, count: int) -> None:
    def work(session: Session) -> None:
        account = first_account_id(session)
        common = {"account_id": account, "severity": "low", "source": "test", "created_at": clock()}
        rows = [
            {"id": new_id(), "kind": Kind.PUBLISHED, "payload": {"number": number}, **common}
            for number in range(count)
        ]
        rows[0] |= {"kind": Kind.ROLLED_BACK, "correlation_id": "one"}
        session.execute(insert(Event), rows)

    platform.database.write_now(work)


def test_events_are_found_by_the_start_of_their_kind(api: Api, platform: Platform, clock: Clock) -> None:
    _fill(platform, clock, 10)
    assert api.get("/events", kind_prefix="system.disk_image_")["count"] == 10
    assert api.get("/events", kind_prefix="system.disk_image_rolled_back")["count"] == 1
    assert api.get("/events", kind_prefix="system.ci_worker")["count"] == 0
    assert api.get("/events", kind_prefix="%")["count"] == 0
    assert api.get("/events", correlation_id="one")["count"] == 1
    numbers = [event["payload"]["number"] for event in api.get("/events", limit=3)["events"]]
    assert numbers == [9, 8, 7]


def test_another_account_has_its_own_events(api: Api, other: Api, platform: Platform, clock: Clock) -> None:
    _fill(platform, clock, 2)
    assert other.get("/events")["events"] == []


def test_the_action_gives_recent_events(api: Api, other: Api, platform: Platform, clock: Clock) -> None:
    _fill(platform, clock, 10)
    asked = {"kind_prefix": "system.disk_image_published", "limit": 3}
    found = api.post("/actions/recent_events", asked)
    assert [each["payload"]["number"] for each in found["events"]] == [9, 8, 7]
    assert found["count"] == 3
    assert "limit" in api.error(422, "POST", "/actions/recent_events", json={"limit": 0})
    assert other.post("/actions/recent_events", {}) == {"events": [], "count": 0}
