"""Two server processes on one PostgreSQL database, under load, one of them killed every few seconds.

DISK_IMAGE_TEST_KILL_SECONDS says for how long; DISK_IMAGE_TEST_KILL_RATE how many deliveries a second.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import func, select

from platform_server.identifiers import new_id
from platform_server.state_folder import Platform, now
from platform_server.states import OPEN, Status
from platform_server.tables import Delivery, Job, Publication, Webhook
from tests.platform_server.api import Api, Pipeline, standard
from tests.platform_server.images import Images
from tests.platform_server.invariants import broken
from tests.platform_server.killing import SEED
from tests.platform_server.made import Made
from tests.platform_server.served import Served, prepare

SECONDS = float(os.environ.get("DISK_IMAGE_TEST_KILL_SECONDS", "10"))
RATE = float(os.environ.get("DISK_IMAGE_TEST_KILL_RATE", "10"))
IMAGES = 4
# a process comes back within these, in seconds
PAUSE = (1.0, 4.0)

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(300 + 3 * SECONDS)]


def test_every_accepted_webhook_has_one_outcome_whoever_is_killed(
    made_elsewhere: Made, images: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(IMAGES):
        images.push(f"image {number}", tag=f"{number}", commit=f"{number + 1:040x}")
    servers = [Served(made_elsewhere, images, workers=2) for _ in range(2)]
    stopped = threading.Event()
    try:
        for server in servers:
            server.start()
        with httpx.Client(base_url=servers[0].url, trust_env=False, timeout=60) as client:
            hook = prepare(Api(client, made_elsewhere.admin_token), images)
        sender = _Sender(servers, hook, images, stopped)
        with ThreadPoolExecutor(6) as threads:
            running = [threads.submit(sender.run) for _ in range(4)]
            running.append(threads.submit(_operate, servers, made_elsewhere, stopped))
            try:
                kills = _kill_again_and_again(servers)
            finally:
                stopped.set()
            for each in running:
                each.result()
        platform = made_elsewhere.open()
        _wait_until_nothing_is_open(platform)
    finally:
        for server in servers:
            server.kill()
    accepted = sender.accepted
    rows, deliveries, received, jobs = platform.database.read_now(
        lambda on: (
            {row.id: row for row in on.scalars(select(Publication))},
            {row.delivery_key: row.publication_id for row in on.scalars(select(Delivery))},
            on.scalar(select(Webhook.received_count)) or 0,
            on.scalar(select(func.count(Job.id))),
        )
    )
    # each delivery was sent until it was answered: what is there is what was answered, neither more nor less
    assert {f"id:{identifier}": each for identifier, each in accepted.items()} == deliveries
    assert rows.keys() == set(accepted.values())
    assert jobs == 0
    assert received >= len(accepted)
    outcomes = Counter(_outcome(row) for row in rows.values())
    assert outcomes["published"] == IMAGES
    assert outcomes.keys() <= {"published", "duplicate", "verification_failed"}
    assert broken(platform) == []
    platform.database.close()
    with capsys.disabled():
        sys.stdout.write(
            f"\n{SECONDS:g} s, {kills} kills, {sender.sent} requests: {sender.unanswered} unanswered, "
            f"{sender.refused} put off; {len(accepted)} deliveries accepted, {len(rows)} publications: "
            f"{dict(outcomes)}\n"
        )


def _outcome(row: Publication) -> str:
    """In one word; "published" also when it was retired since."""
    if row.published_at is not None:
        return "published"
    assert row.status in (Status.FAILED, Status.RETIRED), row.status
    return "duplicate" if row.duplicate_of_id else str(row.error_message).partition(":")[0]


def _kill_again_and_again(servers: Sequence[Served]) -> int:
    """One of them at a time, and start it anew; how often."""
    chance = random.Random(SEED)
    until, kills = time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        time.sleep(chance.uniform(*PAUSE))
        server = servers[kills % len(servers)]
        server.kill()
        kills += 1
        server.start()
    return kills


class _Sender:
    """Pipelines that report images, each delivery until it is answered, and now and then to both servers at
    once.
    """

    def __init__(
        self, servers: Sequence[Served], hook: Pipeline, images: Images, stopped: threading.Event
    ) -> None:
        self._servers, self._hook, self._images, self._stopped = servers, hook, images, stopped
        self._lock = threading.Lock()
        # webhook-id → the publication that it was answered with
        self.accepted: dict[str, UUID] = {}
        self.sent = self.unanswered = self.refused = 0

    def run(self) -> None:
        """Send until stopped."""
        chance = random.Random()
        with (
            httpx.Client(trust_env=False, timeout=20) as client,
            httpx.Client(trust_env=False, timeout=20) as other,
            ThreadPoolExecutor(1) as beside,
        ):
            while not self._stopped.is_set():
                began = time.monotonic()
                tag = "missing" if chance.random() < 0.05 else str(chance.randrange(IMAGES))
                body = self._hook.body(oci_ref=self._images.ref(tag))
                identifier = f"msg_{new_id()}"
                first = chance.randrange(2)
                if chance.random() < 0.3:
                    twin = beside.submit(self._until_answered, other, 1 - first, identifier, body)
                    answers = {self._until_answered(client, first, identifier, body), twin.result()}
                else:
                    answers = {self._until_answered(client, first, identifier, body)}
                assert len(answers) == 1, "one delivery was answered with two publications"
                with self._lock:
                    self.accepted[identifier] = answers.pop()
                time.sleep(max(0.0, began + 4 / RATE - time.monotonic()))

    def _until_answered(self, client: httpx.Client, first: int, identifier: str, body: bytes) -> UUID:
        """The publication, by whichever server answers."""
        until = time.monotonic() + 120
        attempt = first
        while time.monotonic() < until:
            server = self._servers[attempt % 2]
            attempt += 1
            answer = self._send(client, server.url, identifier, body)
            if answer is not None:
                return UUID(answer.json()["publication_id"])
            time.sleep(0.05)
        raise AssertionError("no server answered for two minutes")

    def _send(self, client: httpx.Client, url: str, identifier: str, body: bytes) -> httpx.Response | None:
        path = f"/api/v1/system/webhooks/disk_image/built/{self._hook.webhook_id}"
        headers = standard(self._hook.secret, body, now(), identifier)
        answer = None
        with suppress(httpx.HTTPError):
            answer = client.post(f"{url}{path}", content=body, headers=headers)
        with self._lock:
            self.sent += 1
            self.unanswered += answer is None
            if answer is not None and answer.status_code == 503:
                self.refused += 1
                return None
        if answer is not None:
            assert answer.status_code in (200, 202), answer.text
        return answer


def _operate(servers: Sequence[Served], made: Made, stopped: threading.Event) -> None:
    """Somebody who changes the default and how many images are kept, by either server."""
    chance = random.Random(SEED)
    with httpx.Client(trust_env=False, timeout=20) as client:
        headers = {"Authorization": f"Bearer {made.admin_token}"}

        def call(method: str, path: str, **more: Any) -> Any:
            url = f"{chance.choice(servers).url}/api/v1/system{path}"
            return client.request(method, url, headers=headers, **more).json()

        while not stopped.wait(0.3):
            with suppress(httpx.HTTPError, KeyError, IndexError):
                _change(call, chance)


def _change(call: Callable[..., Any], chance: random.Random) -> None:
    platform = call("GET", "/node_platforms")["data"]["node_platforms"][0]["id"]
    kept = call("GET", f"/node_platforms/{platform}/disk_image_publications", params={"status": "published"})
    published = [row["id"] for row in kept["data"]["disk_image_publications"]]
    if chance.random() < 0.5:
        fields = {"node_platform": {"disk_image_retention_count": chance.randint(1, IMAGES)}}
        call("PATCH", f"/node_platforms/{platform}", json=fields)
    elif chance.random() < 0.5:
        asked = {"platform_id": platform, "publication_id": chance.choice(published)}
        call("POST", "/actions/system_set_default_disk_image_publication", json=asked)
    else:
        call("POST", "/actions/system_rollback_disk_image", json={"platform_id": platform})


def _wait_until_nothing_is_open(platform: Platform) -> None:
    query = select(func.count(Publication.id)).where(Publication.status.in_(OPEN))
    until = time.monotonic() + 240 + SECONDS
    while platform.database.read_now(lambda on: on.scalar(query)):
        assert time.monotonic() < until, platform.database.read_now(lambda on: on.scalar(query))
        time.sleep(0.5)
