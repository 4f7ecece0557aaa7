"""Health, readiness and metrics: what is answered to those who watch, and to whom."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_metrics,
)
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update
from sqlalchemy.orm import Session
from syrupy.assertion import SnapshotAssertion

from platform_server import beside, health, queue
from platform_server.accounts import user_token
from platform_server.app import Process, create_app
from platform_server.events import Kind, Told, emit
from platform_server.gauges import described
from platform_server.migrations.run import newest
from platform_server.permissions import Permission
from platform_server.settings import Schedule
from platform_server.state_folder import Platform
from platform_server.tables import NodePlatform, Publication
from tests.platform_server.api import Api, Pipeline, plain
from tests.platform_server.clock import Clock
from tests.platform_server.verifying import Trial


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is a new one."""
    monkeypatch.setattr(health, "_FRESH", 0.0)
    monkeypatch.setattr("platform_server.gauges._FRESH", 0.0)
    monkeypatch.setattr("platform_server.gauges._REST", 0.0)


parsed: Callable[[str], Iterable[Metric]] = text_string_to_metric_families
parsed_open: Callable[[str], Iterable[Metric]] = open_metrics


def _checks(client: httpx.Client, status: int) -> dict[str, str]:
    answer = client.get("/readyz")
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == ("ready" if status == 200 else "not ready")
    checks: dict[str, str] = answer.json()["checks"]
    return checks


def test_a_platform_that_serves_is_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert set(_checks(client, 200).values()) == {"ok"}


@pytest.mark.one_database
def test_a_full_disk_is_not_ready(now: None, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 1000, 1000))
    assert _checks(client, 503)["disk"] == "expected 1073741824 bytes free for the database, found 1000"
    assert client.get("/healthz").status_code == 200


def test_another_schema_is_not_ready(now: None, client: httpx.Client, platform: Platform) -> None:
    platform.database.write_now(
        lambda on: on.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    )
    assert _checks(client, 503)["database"].endswith("found 9999")


def test_a_later_schema_of_the_same_epoch_is_ready(
    now: None, client: httpx.Client, platform: Platform
) -> None:
    change = text("UPDATE alembic_version SET version_num = '0999'")
    platform.database.write_now(lambda on: on.execute(change))
    assert _checks(client, 200)["database"] == "ok"


def test_a_database_that_fails_is_not_ready_and_its_reason_is_only_logged(
    now: None, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(database: object) -> str:
        raise OSError("no route to host db.internal")

    monkeypatch.setattr(health, "current", fail)
    assert _checks(client, 503)["database"] == "no answer; the log says why"
    assert "db.internal" in caplog.text


def test_a_database_that_does_not_answer_is_not_waited_for(
    now: None, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[[Any], None]
) -> None:
    answered: list[bool] = []

    waiting: list[int] = []

    def wait(database: object) -> str:
        waiting.append(1)
        wait_for(lambda: bool(answered))
        return newest()

    monkeypatch.setattr(health, "_PATIENCE", 0.2)
    monkeypatch.setattr(health, "current", wait)
    for _ in range(3):
        assert _checks(client, 503)["database"] == "no answer within 0.2 s"
    assert waiting == [1]
    answered.append(True)


def test_tasks_that_ended_or_hang_are_not_ready(
    now: None, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    process: Process = create_app(platform).state.process
    assert process.health.check_now()["tasks"] == "not running: all"
    with process.beside.running():
        assert process.health.check_now()["tasks"] == "ok"
        monkeypatch.setattr(beside, "_SILENCE", -1.0)
        assert process.health.check_now()["tasks"].startswith("nothing done for ")
        monkeypatch.undo()
        process.beside.stop()
        assert process.health.check_now()["tasks"] == "not running: uploads, sweeps, manager, beat"


@pytest.mark.one_database
def test_checks_are_made_once_a_second_whoever_asks(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def count(database: object) -> str:
        asked.append(database)
        return newest()

    monkeypatch.setattr(health, "_FRESH", 3600.0)
    monkeypatch.setattr(health, "current", count)
    for _ in range(20):
        _checks(client, 200)
    assert len(asked) <= 1


def _families(platform: Platform) -> dict[str, Any]:
    process: Process = create_app(platform).state.process
    text = generate_latest(process.registry).decode()
    return {family.name: family for family in parsed(text)}


def _values(platform: Platform, name: str) -> dict[tuple[str, ...], float]:
    family = _families(platform)[name]
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


@pytest.mark.one_database
def test_names_types_and_helps_of_all_metrics(snapshot: SnapshotAssertion) -> None:
    # those of the Python process are the client library's
    assert [
        f"{family.name} {family.type}: {family.documentation}"
        for family in described()
        if family.name.startswith("disk_image")
    ] == snapshot


def test_what_is_described_is_what_there_is(platform: Platform) -> None:
    # as text, an Info is a gauge by another name
    names = {
        "disk_image_build_info" if each.name == "disk_image_build" else each.name for each in described()
    }
    assert set(_families(platform)) == names


@pytest.mark.one_database
def test_metrics_are_for_who_may_read_them(
    api: Api, platform: Platform, clock: Clock, client: httpx.Client
) -> None:
    def get(token: str, accept: str = "text/plain") -> httpx.Response:
        return client.get("/metrics", headers={"authorization": f"Bearer {token}", "accept": accept})

    def token(*permissions: str) -> str:
        return platform.database.write_now(
            lambda on: user_token(on, "default", "scraper", permissions, clock())
        )

    assert client.get("/metrics").status_code == 401
    assert get(token(Permission.PLATFORMS_READ)).status_code == 403
    scraper = token(Permission.METRICS_READ)
    assert get(scraper).headers["content-type"].startswith("text/plain; version=")
    assert {each.name for each in parsed(get(scraper).text)} >= {
        "disk_image_queue_jobs",
        "disk_image_build_info",
        "process_resident_memory_bytes",
    }
    answer = get(scraper, "application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert {each.name for each in parsed_open(answer.text)} >= {"disk_image_events"}


def test_gauges_count_what_the_database_holds(now: None, trial: Trial, clock: Clock) -> None:
    platform = trial.platform
    trial.images.push()
    assert trial.verify().status == "published"
    waiting = trial.report()
    clock.pass_by(minutes=2)
    assert _values(platform, "disk_image_publications")["published",] == 1
    assert _values(platform, "disk_image_publications")["queued",] == 1
    assert _values(platform, "disk_image_queue_jobs") == {("due",): 1, ("leased",): 0, ("later",): 0}
    assert _values(platform, "disk_image_queue_oldest_seconds") == {(): 120}
    assert _values(platform, "disk_image_publications_stuck") == {(): 0}
    at = clock()
    trial.write(
        lambda on: on.execute(
            update(Publication).where(Publication.id == waiting).values(stuck_reported_at=at)
        )
    )
    assert _values(platform, "disk_image_publications_stuck") == {(): 1}
    assert _values(platform, "disk_image_ready")["database",] == 1


def test_gauges_tell_leased_from_due_and_later_jobs(now: None, trial: Trial, clock: Clock) -> None:
    for _ in range(3):
        trial.report()
    first = trial.write(lambda on: queue.claim(on, Schedule(), clock()))
    second = trial.write(lambda on: queue.claim(on, Schedule(), clock()))
    assert first is not None
    assert second is not None
    trial.write(lambda on: queue.put_back(on, second, clock() + timedelta(minutes=5), "later"))
    jobs = {("due",): 1.0, ("leased",): 1.0, ("later",): 1.0}
    assert _values(trial.platform, "disk_image_queue_jobs") == jobs
    clock.pass_by(minutes=2)
    assert _values(trial.platform, "disk_image_queue_jobs") == {("due",): 2, ("leased",): 0, ("later",): 1}


def test_a_database_that_fails_leaves_the_other_metrics(
    now: None, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(database: object) -> str:
        raise OSError("away")

    monkeypatch.setattr(health, "current", fail)
    families = _families(platform)
    assert "disk_image_queue_jobs" not in families
    assert "disk_image_http_requests" in families
    assert _values(platform, "disk_image_ready")["database",] == 0


@pytest.fixture
def grown(platform: Platform) -> Callable[[str], dict[tuple[str, ...], float]]:
    """By how much the series of a counter grew since the test began; those that did."""
    before = {name: _values(platform, name) for name in _families(platform)}

    def since(name: str) -> dict[tuple[str, ...], float]:
        series = _values(platform, name)
        return {
            labels: value - before[name].get(labels, 0.0)
            for labels, value in series.items()
            if value != before[name].get(labels, 0.0)
        }

    return since


def test_outcomes_and_events_are_counted(
    grown: Callable[[str], dict[tuple[str, ...], float]], trial: Trial
) -> None:
    trial.images.push()
    trial.verify()
    trial.verify()
    trial.verify("registry.elsewhere/os/debian:13")
    assert grown("disk_image_verifications") == {
        ("published",): 1,
        ("duplicate",): 1,
        ("untrusted_registry",): 1,
    }
    assert grown("disk_image_events") == {
        ("system.disk_image_published",): 1,
        ("system.disk_image_publish_failed",): 1,
    }


def test_events_of_what_is_undone_are_not_counted(
    grown: Callable[[str], dict[tuple[str, ...], float]], platform: Platform, platform_id: str
) -> None:
    def work(session: Session, *, fail: bool) -> None:
        account_id = session.get_one(NodePlatform, UUID(platform_id)).account_id
        emit(session, account_id, Kind.STUCK, {}, Told("test"), platform.clock())
        with suppress(ValueError), session.begin_nested():
            emit(session, account_id, Kind.DOWNLOADED, {}, Told("test"), platform.clock())
            session.flush()
            raise ValueError("undone")
        emit(session, account_id, Kind.DEFAULT_SET, {}, Told("test"), platform.clock())
        if fail:
            raise ValueError("undone")

    with pytest.raises(ValueError, match="undone"):
        platform.database.write_now(lambda on: work(on, fail=True))
    assert grown("disk_image_events") == {}
    platform.database.write_now(lambda on: work(on, fail=False))
    assert grown("disk_image_events") == {
        ("system.disk_image_publication_stuck",): 1,
        ("system.disk_image_default_set",): 1,
    }


@pytest.mark.one_database
def test_answers_and_refusals_are_counted(
    grown: Callable[[str], dict[tuple[str, ...], float]], pipeline: Pipeline
) -> None:
    assert pipeline.plain().status_code == 202
    assert pipeline.plain().status_code == 200
    body = pipeline.body()
    assert pipeline.send(body, plain("wrong", body)).status_code == 401
    assert pipeline.send(b"x" * 70_000, {}).status_code == 413
    assert grown("disk_image_webhook_answers") == {
        ("", "queued"): 1,
        ("", "idempotent_hit"): 1,
        ("bad_signature", "error"): 1,
        ("too_large", "error"): 1,
    }
    assert grown("disk_image_limited") == {("webhook_body",): 1}


@pytest.mark.one_database
def test_nobody_makes_a_series_by_what_he_sends(
    grown: Callable[[str], dict[tuple[str, ...], float]], api: Api
) -> None:
    """Every route with values of our own, unknown paths and methods: the labels are the program's words."""
    schema = api.client.get("/api/v1/system/openapi.json").json()
    known = {"unmatched", "/api/v1/system/openapi.json", *schema["paths"]}
    for number in range(2):
        for path, methods in schema["paths"].items():
            target = "/".join(f"x{number}" if "{" in part else part for part in path.split("/"))
            for method in (*methods, "options", "brew"):
                api.client.request(method.upper(), target)
        api.client.get(f"/{number}/nothing")
    # by method, route and status
    series = grown("disk_image_http_requests")
    assert {labels[1] for labels in series} == known
    methods = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"}
    assert {labels[0] for labels in series} <= methods


def test_the_schema_is_made_once(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may ask for it, as often as he likes."""
    asked: list[object] = []
    make = FastAPI.openapi

    def count(app: FastAPI) -> dict[str, Any]:
        asked.append(app)
        return make(app)

    monkeypatch.setattr(FastAPI, "openapi", count)
    first, second = (client.get("/api/v1/system/openapi.json") for _ in range(2))
    assert first.json()["openapi"].startswith("3.")
    assert (first.headers["content-type"], first.content) == ("application/json", second.content)
    assert len(asked) == 1
