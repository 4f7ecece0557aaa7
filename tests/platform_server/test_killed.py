"""kill -9 at any moment of taking a delivery, verifying, publishing and migrating (test_killed_sweeps.py:
retention): nothing is lost, and nothing is there twice.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, inspect, select

from platform_server.database import Database
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Delivery, Event, Job, NodePlatform, Publication, Webhook
from tests.platform_server.api import Api, Pipeline, standard
from tests.platform_server.images import Images
from tests.platform_server.killing import SEED, Kill
from tests.platform_server.made import Made
from tests.platform_server.published import Publish
from tests.platform_server.served import Served, prepare
from tests.platform_server.verifying import Trial

pytestmark = pytest.mark.timeout(600)

OUTCOMES = ["published", "duplicate", "published_artifact_mismatch", "verification_failed"]


def test_verifying_and_publishing_killed_at_random_moments(
    trial: Trial, made: Made, kill: Kill, tmp_path: Path
) -> None:
    """A new image, one that is published already, another build of its commit, and one that is not there."""
    trial.images.push(tag="first")
    trial.images.push("rebuilt", tag="rebuilt")
    trial.images.push("second", tag="second", commit="2" * 40)
    trial.verify(trial.images.ref("first"))
    for tag in ("second", "first", "rebuilt", "missing"):
        trial.report(trial.images.ref(tag))
    trial.platform.database.close()
    trust = {"trust": str(trial.images.forge.trust.path)}
    whole = made.copied(tmp_path / "whole")
    moments = kill("verify", whole, **trust)["moments"]
    expected = _outcome(whole)
    assert expected == ["published", *OUTCOMES]
    assert moments > 50
    chosen = random.Random(SEED).sample(range(1, moments + 1), made.moments)
    for moment in chosen:
        state = made.copied(tmp_path / "killed")
        assert kill("verify", state, moment, **trust)["killed"]
        assert not kill("verify", state, ahead=10, **trust)["killed"]
        assert _outcome(state) == expected, f"killed at moment {moment} of {moments}"


def _outcome(state: Made) -> list[str]:
    """What became of each row; checks that it happened once."""
    platform = state.open()
    with closing(platform.database):
        rows, events, jobs, default = platform.database.read_now(
            lambda on: (
                on.scalars(select(Publication).order_by(Publication.id)).all(),
                Counter(
                    on.scalars(select(Event.payload)).all()
                    and [
                        (event.kind, event.payload["publication_id"]) for event in on.scalars(select(Event))
                    ]
                ),
                on.scalar(select(func.count(Job.id))),
                on.scalar(select(NodePlatform.default_publication_id)),
            )
        )
    assert jobs == 0
    for row in rows:
        kind = "published" if row.status is Status.PUBLISHED else "publish_failed"
        wanted = 0 if row.duplicate_of_id else 1
        assert events.pop((f"system.disk_image_{kind}", str(row.id)), 0) == wanted
    assert not events
    assert default == rows[0].id
    return [row.status if row.published_at else str(row.error_message).partition(":")[0] for row in rows]


def test_a_delivery_killed_at_every_moment(
    platform: Platform,
    made: Made,
    pipeline: Pipeline,
    in_service: ExitStack,
    kill: Kill,
    tmp_path: Path,
) -> None:
    body = pipeline.body(git_sha="a" * 40)
    delivery = {
        "webhook_id": pipeline.webhook_id,
        "body": body.decode(),
        "headers": {
            name.replace("-", "_"): value
            for name, value in standard(pipeline.secret, body, _now(), "msg_1").items()
        },
    }
    in_service.close()
    platform.database.close()
    moments = kill("deliver", made.copied(tmp_path / "whole"), **delivery)["moments"]
    for moment in range(1, moments + 1, made.step):
        state = made.copied(tmp_path / "killed")
        assert kill("deliver", state, moment, **delivery)["killed"]
        assert _counts(state) in ([0, 0, 0, 0], [1, 1, 1, 1])
        kill("deliver", state, **delivery)
        publications, jobs, deliveries, received = _counts(state)
        assert (publications, jobs, deliveries) == (1, 1, 1)
        assert received in (1, 2)


def _counts(state: Made) -> list[int]:
    opened = state.open()
    with closing(opened.database):
        counts = [select(func.count(table.id)) for table in (Publication, Job, Delivery)]
        queries = [*counts, select(Webhook.received_count)]
        return opened.database.read_now(lambda on: [on.scalar(query) or 0 for query in queries])


def _now() -> Any:
    from platform_server.state_folder import now

    return now()


@pytest.mark.parametrize(
    ("start", "goal"), [("base", "head"), ("head", "base"), ("0001", "head"), ("head", "0001")]
)
def test_a_migration_killed_at_any_moment_can_be_run_again(
    publish: Publish, made: Made, in_service: ExitStack, kill: Kill, tmp_path: Path, start: str, goal: str
) -> None:
    """At the first revision and the newest one there are rows, which a migration keeps as they are."""
    for status in Status:
        publish(status)
    in_service.close()
    publish.platform.database.close()
    kill("migrate", made, revision=start)
    before = _rows(made)
    whole = made.copied(tmp_path / "whole")
    moments = kill("migrate", whole, revision=goal)["moments"]
    after = _rows(whole)
    if "base" not in (start, goal):
        assert "purges" in after.keys() ^ before.keys()
        assert len(after["publications"]) == len(Status)
        assert all(after[table] == before[table] for table in after.keys() & before.keys())
    chosen = random.Random(SEED).sample(range(1, moments + 1), min(made.moments // 2, moments))
    for moment in {*chosen, moments}:
        state = made.copied(tmp_path / "killed")
        assert kill("migrate", state, moment, revision=goal)["killed"]
        assert _rows(state) == before, f"killed at moment {moment} of {moments}"
        kill("migrate", state, revision=goal)
        again = _rows(state)
        assert {name: len(rows) for name, rows in again.items()} == {
            name: len(rows) for name, rows in after.items()
        }
        # what a migration makes itself has other ids and times each time
        assert all(again[name] == after[name] for name in after.keys() & before.keys())
        if goal == "head":
            state.open().database.close()


def _rows(made: Made) -> dict[str, list[Any]]:
    """Every table's rows, but for the revision."""
    opened = _database(made)
    with closing(opened), opened.engine.connect() as connection:
        if opened.is_sqlite:
            assert connection.exec_driver_sql("PRAGMA integrity_check").all() == [("ok",)]
        return {
            name: sorted(map(tuple, connection.exec_driver_sql(f'SELECT * FROM "{name}"')), key=repr)
            for name in inspect(connection).get_table_names()
            if name != "alembic_version"
        }


def _database(made: Made) -> Database:
    """Whatever its schema is."""
    return Database(made.database or f"sqlite:///{made.folder}/platform.db")


@pytest.mark.one_database  # on PostgreSQL: test_two_processes.py
def test_the_served_platform_killed_again_and_again_loses_no_accepted_delivery(
    made: Made, images: Images, tmp_path: Path
) -> None:
    """kill -9 of the real command, at random times under load; every delivery that was answered has one
    outcome in the end.
    """
    commits = [f"{number:040x}" for number in range(1, 200)]
    for number in range(3):
        images.push(f"image {number}", tag=f"{number}", commit=commits[number])
    chance = random.Random(SEED)
    accepted: set[str] = set()
    pipeline: Pipeline | None = None
    served = Served(made, images)
    try:
        for _ in range(4):
            served.start()
            client = httpx.Client(base_url=served.url, trust_env=False, timeout=10)
            if pipeline is None:
                pipeline = prepare(Api(client, made.admin_token), images)
            sender = _Sender(Pipeline(client, _now, pipeline.webhook_id, pipeline.secret), images)
            sender.start()
            time.sleep(chance.uniform(0.3, 2.0))
            served.kill()
            sender.stop()
            client.close()
            accepted |= sender.accepted
        served.start()
        with httpx.Client(base_url=served.url, trust_env=False, timeout=60) as client:
            rows = _finished(Api(client, made.admin_token), pipeline)
    finally:
        served.kill()
    assert accepted
    assert accepted <= rows.keys()
    published = [row for row in rows.values() if row["status"] == "published"]
    assert len({row["oci_digest"] for row in published}) == len(published) == 3
    for row in rows.values():
        assert row["status"] == "published" or row["duplicate_of_id"], row["error_message"]


def _finished(api: Api, pipeline: Pipeline | None) -> dict[str, Any]:
    """All publications, once none is on its way."""
    (platform,) = api.get("/node_platforms")["node_platforms"]
    path = f"/node_platforms/{platform['id']}/disk_image_publications"
    until = time.monotonic() + 240
    while True:
        rows: dict[str, Any] = {}
        page = api.get(path, limit=200)
        while True:
            rows |= {row["id"]: row for row in page["disk_image_publications"]}
            if page["meta"]["next"] is None:
                break
            page = api.get(path, limit=200, before=page["meta"]["next"])
        if all(row["status"] not in ("queued", "verifying") for row in rows.values()):
            return rows
        assert time.monotonic() < until, Counter(row["status"] for row in rows.values())
        time.sleep(1)


class _Sender(threading.Thread):
    """Delivers one after the other until it is stopped; remembers what was accepted."""

    def __init__(self, pipeline: Pipeline, images: Images) -> None:
        super().__init__(daemon=True)
        self._pipeline = pipeline
        self._images = images
        self._stopped = threading.Event()
        self.accepted: set[str] = set()

    def run(self) -> None:
        number = 0
        while not self._stopped.is_set():
            number += 1
            with suppress(httpx.HTTPError):
                answer = self._pipeline.standard(oci_ref=self._images.ref(f"{number % 3}"))
                assert answer.status_code in (200, 202), answer.text
                self.accepted.add(answer.json()["publication_id"])

    def stop(self) -> None:
        self._stopped.set()
        self.join(30)
