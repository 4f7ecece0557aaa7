"""The operators' actions: against the platform of this project, and what is read from others' answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import anyio
import httpx
import pytest

from pipelines.errors import UsageError
from platform_client.actions import Actions, open_actions
from platform_client.errors import NotThePlatform, PlatformError, Refused, Unreachable
from platform_client.settings import Webhook
from platform_client.webhook import WebhookBody, deliver
from platform_server.settings import Settings
from platform_server.state_folder import initialise, open_platform
from supply_chain.registry import Policy
from tests.platform_client.answering import Answered, AnsweringServer, answering_server, data
from tests.platform_server.serving import serving

TOKEN = "canary-token"
PLATFORM = "0195d3b6-7c1e-7f00-8000-000000000001"
PUBLICATION = "0195d3b6-7c1e-7f00-8000-000000000002"
DIGEST = "ab" * 32

T = TypeVar("T")


@pytest.fixture
def server() -> Iterator[AnsweringServer]:
    """Answers as a test says."""
    with answering_server() as running:
        yield running


class Act:
    """Does one action as the owner of a token."""

    def __init__(self, url: str, token: str, policy: Policy) -> None:
        self.url = url
        self._token = token
        self._policy = policy

    def __call__(self, action: Callable[[Actions], Awaitable[T]]) -> T:
        async def acting() -> T:
            async with open_actions(self.url, self._token, policy=self._policy) as actions:
                return await action(actions)

        return anyio.run(acting)


@pytest.fixture
def act(server: AnsweringServer, policy: Policy) -> Act:
    return Act(server.url, TOKEN, policy)


@pytest.fixture
def operate(tmp_path: Path) -> Iterator[Act]:
    """The same at a real platform, whose images nobody verifies."""
    token = initialise(tmp_path / "state", datetime.now(UTC))
    platform = open_platform(tmp_path / "state", Settings(workers=0))
    with serving(platform) as (host, port):
        yield Act(f"http://{host}:{port}", token, Policy(patience=30.0))
    platform.database.close()


def test_from_nothing_to_a_publication(operate: Act) -> None:
    """Platform, webhook, delivery, and what became of it."""
    platform = operate(lambda on: on.create_node_platform("debian-minimal", arch="amd64"))
    assert platform.disk_image_retention_count == 3
    assert operate(lambda on: on.node_platforms()) == [platform]
    made = operate(lambda on: on.create_webhook("ci"))
    path = httpx.URL(made.webhook_url).path
    webhook = Webhook(httpx.URL(operate.url).copy_with(path=path), made.webhook_secret.encode())
    body = WebhookBody(
        platform_slug="debian-minimal",
        platform_name="debian-minimal",
        oci_ref=f"registry.example/os/debian@sha256:{DIGEST}",
        sha256=DIGEST,
        size_bytes=42,
        git_sha="1f" * 20,
        arch="amd64",
        oci_digest=f"sha256:{DIGEST}",
    )
    taken = anyio.run(lambda: deliver(webhook, "msg_1", body.to_bytes(), policy=Policy()))
    assert taken.status == "queued"
    assert taken.publication_id is not None
    assert anyio.run(lambda: deliver(webhook, "msg_1", body.to_bytes(), policy=Policy())).status == (
        "idempotent_hit"
    )
    (listed,) = operate(lambda on: on.publications(platform.id))
    assert (listed.id, listed.status, listed.oci_digest) == (
        taken.publication_id,
        "queued",
        f"sha256:{DIGEST}",
    )
    assert operate(lambda on: on.publication(platform.id, listed.id)) == listed
    assert operate(lambda on: on.publications(platform.id, status="published")) == []
    assert operate(lambda on: on.set_retention(platform.id, 5)).disk_image_retention_count == 5
    assert operate(lambda on: on.recent_events("system.nothing")) == []
    other = body.model_copy(update={"sha256": None, "oci_digest": None, "platform_slug": None})
    with pytest.raises(PlatformError) as caught:
        anyio.run(lambda: deliver(webhook, "msg_1", other.to_bytes(), policy=Policy()))
    assert caught.value.reason == "delivery_mismatch"


def test_what_a_real_platform_refuses(operate: Act) -> None:
    with pytest.raises(Refused, match=r"refused with 401") as caught:
        Act(operate.url, "no-such-token", Policy())(lambda on: on.node_platforms())
    assert "valid" in caught.value.hint
    with pytest.raises(Refused, match=r"GET node_platforms/.* refused with 404"):
        operate(lambda on: on.publications(PLATFORM))
    with pytest.raises(Refused, match=r"refused with 422"):
        operate(lambda on: on.create_node_platform("no such name"))


def test_every_page_is_read(server: AnsweringServer, act: Act) -> None:
    rows = [{"id": str(number), "name": f"p{number}"} for number in range(3)]
    server.play(
        data(node_platforms=rows[:2], meta={"count": 2, "next": "1"}),
        data(node_platforms=rows[2:], meta={"count": 1, "next": None}),
    )
    assert [one.id for one in act(lambda on: on.node_platforms())] == ["0", "1", "2"]
    assert [one.path for one in server.asked] == [
        "/api/v1/system/node_platforms",
        "/api/v1/system/node_platforms?before=1",
    ]
    assert server.asked[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_a_list_without_an_end_is_refused(server: AnsweringServer, act: Act) -> None:
    server.answer = lambda asked: data(node_platforms=[], meta={"next": "again"})
    with pytest.raises(NotThePlatform, match="more than 100 pages"):
        act(lambda on: on.node_platforms())


def test_default_and_rollback(server: AnsweringServer, act: Act) -> None:
    server.answer = lambda asked: data()
    act(lambda on: on.set_default(PLATFORM, PUBLICATION))
    act(lambda on: on.rollback(PLATFORM))
    act(lambda on: on.rollback(PLATFORM, PUBLICATION))
    base = f"/api/v1/system/node_platforms/{PLATFORM}"
    assert [(one.method, one.path) for one in server.asked] == [
        ("POST", f"{base}/disk_image_publications/{PUBLICATION}/set_default"),
        ("POST", f"{base}/rollback_disk_image"),
        ("POST", f"{base}/rollback_disk_image"),
    ]
    assert [one.json for one in server.asked] == [{}, {}, {"publication_id": PUBLICATION}]


def test_the_reference_s_answers(server: AnsweringServer, act: Act) -> None:
    """Other names for some things, no `data` around them, and 200 for a failure."""
    server.play(
        Answered(
            200,
            {
                "success": True,
                "disk_image_webhook": {"id": 7, "label": "ci"},
                "secret_plaintext": "pndis_canary",
                "webhook_url": "https://platform.example/hook",
            },
        ),
        data(disk_image_publication={"id": 1, "status": "published", "active": True, "sha256": DIGEST}),
        Answered(200, {"success": False, "error": "must be ≥1"}),
    )
    webhook = act(lambda on: on.create_webhook("ci"))
    assert (webhook.webhook_id, webhook.webhook_secret) == ("7", "pndis_canary")
    assert "canary" not in repr(webhook)
    assert act(lambda on: on.publication("1", "1")).is_default is True
    with pytest.raises(Refused, match="refused with 200: must be ≥1"):
        act(lambda on: on.set_retention("1", 0))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answered(200, b"<!DOCTYPE html>"), NotThePlatform),
        (Answered(200, b""), NotThePlatform),
        (Answered(200, []), NotThePlatform),
        (Answered(200, b'{"success": true, "data": {' + b" " * (2 << 20)), NotThePlatform),
        (data(node_platforms="none"), NotThePlatform),
        (data(node_platforms=[{"id": 1}]), NotThePlatform),
        (data(node_platforms=[7]), NotThePlatform),
        (Answered(302, headers={"Location": "https://elsewhere.example/"}), NotThePlatform),
        (Answered(403, {"success": False, "error": f"no {TOKEN}"}), Refused),
        (Answered(404, b"<h1>nginx</h1>"), Refused),
    ],
)
def test_answers_that_are_none(
    answer: Answered, kind: type[PlatformError], server: AnsweringServer, act: Act
) -> None:
    server.play(answer)
    with pytest.raises(kind) as caught:
        act(lambda on: on.node_platforms())
    assert caught.value.hint
    assert TOKEN not in caught.value.what + caught.value.hint


def test_a_list_is_asked_for_again_and_a_webhook_is_not_made_twice(
    server: AnsweringServer, act: Act, policy: Policy
) -> None:
    server.play(Answered(503), Answered(200, cut=True), data(node_platforms=[]))
    assert act(lambda on: on.node_platforms()) == []
    for lost in (Answered(200, cut=True), Answered(500)):
        server.asked.clear()
        server.play(lost)
        with pytest.raises(Unreachable, match="1 attempt"):
            act(lambda on: on.create_webhook("ci"))
        assert len(server.asked) == 1
    server.play(
        Answered(429, headers={"Retry-After": "1"}), Answered(422, {"success": False, "error": "taken"})
    )
    with pytest.raises(Refused, match="taken"):
        act(lambda on: on.create_webhook("ci"))


@pytest.mark.parametrize("identifier", ["", "..", "a/b", "1?x=2", "a b", "x" * 200])
def test_ids_that_are_none(identifier: str, server: AnsweringServer, act: Act) -> None:
    with pytest.raises(UsageError, match="expected an id"):
        act(lambda on: on.publications(identifier))
    assert server.asked == []


def test_tokens_and_urls_that_are_none(policy: Policy) -> None:
    for url, token in (("http://platform.example", TOKEN), ("https://platform.example", "canary token")):
        with pytest.raises(UsageError) as caught:
            Act(url, token, policy)(lambda on: on.node_platforms())
        assert "canary" not in caught.value.what
