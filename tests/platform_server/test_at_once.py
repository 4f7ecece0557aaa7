"""Many deliveries of one image at once, to the served platform that verifies meanwhile: one publication.
What comes a day later, or with other bytes for the same commit, changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import func, select

from platform_server.settings import Registries, Settings
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Event, Job, Publication
from tests.platform_server.api import Api, Pipeline, plain, standard
from tests.platform_server.clock import Clock
from tests.platform_server.images import Images
from tests.platform_server.verifying import POLICY
from tests.supply_chain.verify.forge import Forge
from tests.supply_chain.verify.signed_image import COMMIT, Signed

COPIES = 100
Delivery = tuple[bytes, dict[str, str]]
WaitFor = Callable[[Callable[[], bool]], None]


@pytest.fixture
def settings(forge: Forge) -> Settings:
    return Settings(workers=2, trust=forge.trust.path, registries=Registries(plain_http=True))


@pytest.fixture
def signed(api: Api, images: Images, platform_id: str) -> Signed:
    """An image whose signer and registry the node platform trusts."""
    policy = {**POLICY, "trusted_registries": [images.server.host]}
    api.patch(f"/node_platforms/{platform_id}", {"node_platform": policy})
    return images.push()


def _copies(pipeline: Pipeline, images: Images, form: str) -> list[Delivery]:
    body = pipeline.body(oci_ref=images.ref(), git_sha=COMMIT)
    if form == "plain":
        return [(body, plain(pipeline.secret, body))] * COPIES
    names = ["msg_1"] * COPIES if form == "one id" else [f"msg_{number}" for number in range(COPIES)]
    return [(body, standard(pipeline.secret, body, pipeline.clock(), name)) for name in names]


def _send_at_once(pipeline: Pipeline, deliveries: Sequence[Delivery]) -> list[httpx.Response]:
    """Each on a connection of its own, all open before the first byte is sent."""
    answers: list[httpx.Response] = []
    url = pipeline.client.base_url.join(f"/api/v1/system/webhooks/disk_image/built/{pipeline.webhook_id}")

    async def send(client: httpx.AsyncClient, body: bytes, headers: dict[str, str]) -> None:
        answers.append(await client.post(url, content=body, headers=headers))

    async def send_all() -> None:
        limits = httpx.Limits(max_connections=COPIES, max_keepalive_connections=COPIES)
        async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:
            async with anyio.create_task_group() as tasks:
                for _ in deliveries:
                    tasks.start_soon(client.get, pipeline.client.base_url.join("/healthz"))
            async with anyio.create_task_group() as tasks:
                for body, headers in deliveries:
                    tasks.start_soon(send, client, body, headers)

    anyio.run(send_all)
    return answers


def _everything(platform: Platform) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """All rows of publications and events, and how many jobs there are."""

    def rows(table: Any) -> list[dict[str, Any]]:
        found = platform.database.read_now(lambda on: on.execute(select(table.__table__)).mappings().all())
        return [dict(row) for row in found]

    jobs = platform.database.read_now(lambda on: on.scalar(select(func.count(Job.id))) or 0)
    return rows(Publication), rows(Event), jobs


def _published(
    platform: Platform, pipeline: Pipeline, images: Images, wait_for: WaitFor, form: str
) -> list[Delivery]:
    """Send the copies, wait until their image is published: what was sent."""
    copies = _copies(pipeline, images, form)
    answers = _send_at_once(pipeline, copies)
    told = Counter((answer.status_code, answer.json()["status"]) for answer in answers)
    assert told == {(202, "queued"): 1, (200, "idempotent_hit"): COPIES - 1}
    assert len({answer.json()["publication_id"] for answer in answers}) == 1
    wait_for(lambda: _everything(platform)[2] == 0)
    return copies


@pytest.mark.parametrize("form", ["plain", "one id", "an id each"])
def test_100_copies_at_once_are_one_publication_also_a_day_later(
    platform: Platform,
    pipeline: Pipeline,
    images: Images,
    signed: Signed,
    clock: Clock,
    wait_for: WaitFor,
    form: str,
) -> None:
    copies = _published(platform, pipeline, images, wait_for, form)
    before = _everything(platform)
    ((row,), (event,), _) = before
    assert (row["status"], row["oci_digest"]) == (Status.PUBLISHED, signed.image.digest)
    assert (event["kind"], event["payload"]["publication_id"]) == (
        "system.disk_image_published",
        str(row["id"]),
    )
    clock.pass_by(days=1, minutes=1)
    replayed = {answer.status_code for answer in _send_at_once(pipeline, copies)}
    assert replayed == {200} if form == "plain" else {401}, "an old timestamp is no signature"
    again = _send_at_once(pipeline, _copies(pipeline, images, form))
    assert {answer.json()["status"] for answer in again} == {"idempotent_hit"}
    assert {answer.json()["publication_id"] for answer in again} == {str(row["id"])}
    assert _everything(platform) == before


@pytest.mark.usefixtures("signed")
def test_other_bytes_of_a_published_commit_are_refused_and_its_row_stays(
    platform: Platform, pipeline: Pipeline, images: Images, wait_for: WaitFor
) -> None:
    _published(platform, pipeline, images, wait_for, "plain")
    before = _everything(platform)
    other = images.push("other bytes", tag="other")
    body = pipeline.body(oci_ref=images.ref("other"), git_sha=COMMIT, oci_digest=other.image.digest)
    answers = _send_at_once(pipeline, [(body, plain(pipeline.secret, body))] * COPIES)
    assert {answer.status_code for answer in answers} == {409}
    assert {answer.json()["reason"] for answer in answers} == {"published_artifact_mismatch"}
    assert _everything(platform) == before
    # Without a commit only verification finds out which one it is.
    assert pipeline.plain(oci_ref=images.ref("other")).status_code == 202
    wait_for(lambda: _everything(platform)[2] == 0)
    rows, _, _ = _everything(platform)
    assert rows[0] == before[0][0]
    assert rows[1]["status"] is Status.FAILED
    assert rows[1]["error_message"].startswith("published_artifact_mismatch: ")
