"""The webhook, as the contract's table has it: who may deliver, replays, conflicts, and what is accepted."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import event as listening
from sqlalchemy import func, select

from platform_server.identifiers import new_id
from platform_server.intake import Intake, Received
from platform_server.sealing import Sealer
from platform_server.settings import Limits, Settings
from platform_server.signatures import SignatureHeaders
from platform_server.state_folder import Platform
from platform_server.states import Transition, move
from platform_server.tables import Delivery, Job, Publication
from tests.platform_server.api import Api, Pipeline, plain, standard
from tests.platform_server.clock import Clock
from tests.platform_server.made import Made
from tests.platform_server.rows import verified
from tests.platform_server.serving import serving

SHA = "a" * 40
DIGEST = f"{1:064x}"


def _answer(response: httpx.Response) -> tuple[int, str, str | None]:
    told = response.json()
    assert told["success"] is (response.status_code < 400)
    return response.status_code, told["status"], told["reason"]


def _rows(platform: Platform) -> list[Publication]:
    return list(platform.database.read_now(lambda on: on.scalars(select(Publication)).all()))


def _columns(row: Publication) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in Publication.__table__.columns}


def _publish(platform: Platform, clock: Clock, publication_id: str, **facts: Any) -> None:
    """What the worker does when an image holds."""

    def work(session: Any) -> None:
        row = session.scalars(select(Publication)).one()
        assert str(row.id) == publication_id
        move(row, Transition.START_VERIFYING, clock())
        session.flush()
        for column, value in (verified() | {"git_sha": SHA} | facts).items():
            setattr(row, column, value)
        move(row, Transition.MARK_PUBLISHED, clock())

    platform.database.write_now(work)


def test_a_signed_delivery_is_queued_for_its_account_and_webhook(
    platform: Platform, pipeline: Pipeline, api: Api, platform_id: str
) -> None:
    answer = pipeline.plain(git_sha=SHA, sha256=DIGEST, size_bytes=5, arch="amd64", sbom_path="sbom.json")
    assert _answer(answer) == (202, "queued", None)
    (row,) = _rows(platform)
    assert str(row.id) == answer.json()["publication_id"]
    assert (row.status, row.git_sha, row.sha256, row.arch) == ("queued", SHA, DIGEST, "amd64")
    assert (str(row.node_platform_id), str(row.webhook_id)) == (platform_id, pipeline.webhook_id)
    assert row.payload["sbom_path"] == "sbom.json"
    jobs = platform.database.read_now(lambda on: on.scalars(select(Job.id)).all())
    assert jobs == [row.id]
    shown = api.get(f"/node_platforms/{platform_id}")["node_platform"]
    assert shown["disk_image_publication_status"] == "queued"


def test_the_tutorials_three_fields_and_base64_signature(pipeline: Pipeline) -> None:
    body = json.dumps(
        {"platform_slug": "debian", "oci_ref": "r.example/os:13", "sbom_path": "s.json"}
    ).encode()
    digest = hmac.new(pipeline.secret.encode(), body, hashlib.sha256).digest()
    answer = pipeline.send(body, {"x-powernode-signature": base64.b64encode(digest).decode()})
    assert _answer(answer) == (202, "queued", None)


def test_platform_name_is_taken_for_platform_slug(pipeline: Pipeline) -> None:
    assert _answer(pipeline.plain(platform_slug=None, platform_name="debian"))[0] == 202


@pytest.mark.parametrize(
    "webhook_id", ["00000000-0000-7000-8000-000000000000", "nonsense", "%00", "a" * 300]
)
def test_an_unknown_webhook_is_404(pipeline: Pipeline, webhook_id: str) -> None:
    body = pipeline.body()
    answer = pipeline.send(body, plain(pipeline.secret, body), webhook_id)
    assert _answer(answer) == (404, "error", "unknown_webhook")


def test_a_disabled_and_a_revoked_webhook_are_unknown(api: Api, pipeline: Pipeline) -> None:
    path = f"/disk_image_webhooks/{pipeline.webhook_id}"
    api.patch(path, {"status": "disabled"})
    assert _answer(pipeline.plain()) == (404, "error", "unknown_webhook")
    api.patch(path, {"status": "active"})
    assert _answer(pipeline.plain())[0] == 202
    api.delete(path)
    assert _answer(pipeline.plain()) == (404, "error", "unknown_webhook")


def test_a_wrong_signature_changes_nothing(platform: Platform, api: Api, pipeline: Pipeline) -> None:
    body = pipeline.body()
    for headers in (plain("pndis_wrong", body), {}, {"x-powernode-signature": ""}):
        assert _answer(pipeline.send(body, headers)) == (401, "error", "bad_signature")
    assert _answer(pipeline.send(b"", plain(pipeline.secret, b""))) == (401, "error", "bad_signature")
    shown = api.get(f"/disk_image_webhooks/{pipeline.webhook_id}")["disk_image_webhook"]
    assert (shown["received_count"], shown["last_received_at"]) == (0, None)
    assert _rows(platform) == []


def test_what_is_signed_is_counted_whatever_is_wrong_with_it(api: Api, pipeline: Pipeline) -> None:
    pipeline.plain()
    pipeline.plain(platform_slug="unknown")
    pipeline.send(b"[]", plain(pipeline.secret, b"[]"))
    shown = api.get(f"/disk_image_webhooks/{pipeline.webhook_id}")["disk_image_webhook"]
    assert shown["received_count"] == 3
    assert shown["last_received_at"]


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"platform_slug": "debian"}',
        b'{"platform_slug": "debian", "oci_ref": "r.example/a:1", "oci_ref": "r.example/b:1"}',
        b'{"platform_slug": "debian", "oci_ref": "r.example/a:1", "extra": 1}',
        b"[" * 50_000,
    ],
    ids=["text", "list", "null", "string", "no utf-8", "no ref", "key twice", "unknown field", "nested"],
)
def test_a_body_that_is_not_the_webhooks_is_422(pipeline: Pipeline, body: bytes) -> None:
    answer = pipeline.send(body, plain(pipeline.secret, body))
    assert _answer(answer) == (422, "error", "invalid_payload")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", "abc"),
        ("sha256", "A" * 64),
        ("arch", "x86"),
        ("size_bytes", -1),
        ("size_bytes", 0),
        ("size_bytes", "5"),
        ("size_bytes", 2**63),
        ("size_bytes", True),
        ("git_sha", "main"),
        ("git_sha", ""),
        ("oci_digest", "sha512:" + "a" * 128),
        ("firmware_ref", "a\x00b"),
        ("sbom_path", "a\nb"),
        ("oci_ref", "registry.example/os/debian"),
        ("oci_ref", ["registry.example/os/debian:1"]),
        ("platform_name", "other"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(
    platform: Platform, pipeline: Pipeline, field: str, value: object
) -> None:
    answer = pipeline.plain(**{field: value})
    assert _answer(answer) == (422, "error", "invalid_payload")
    assert field in answer.json()["note"] or "reference" in answer.json()["note"]
    assert _rows(platform) == []


def test_fields_that_name_different_images_contradict(pipeline: Pipeline) -> None:
    ref = f"registry.example/os/debian@sha256:{DIGEST}"
    assert _answer(pipeline.plain(oci_ref=ref, sha256="b" * 64))[2] == "invalid_payload"
    assert _answer(pipeline.plain(sha256=DIGEST, oci_digest="sha256:" + "b" * 64))[2] == "invalid_payload"
    assert _answer(pipeline.plain(oci_ref=ref, sha256=DIGEST, oci_digest=f"sha256:{DIGEST}"))[0] == 202


def test_another_accounts_platform_is_unknown(api: Api, other: Api, pipeline: Pipeline) -> None:
    other.post("/node_platforms", {"node_platform": {"name": "theirs"}})
    answer = pipeline.plain(platform_slug="theirs")
    assert _answer(answer) == (422, "error", "unknown_platform")


def test_64_kib_is_the_most(pipeline: Pipeline) -> None:
    for size, status in ((64 * 1024, 422), (64 * 1024 + 1, 413)):
        body = b'"' + b"a" * (size - 2) + b'"'
        assert pipeline.send(body, plain(pipeline.secret, body)).status_code == status
    assert _answer(pipeline.send(b"a" * 100_000, {})) == (413, "error", "too_large")


def test_a_body_of_unknown_length_is_cut_off_too(pipeline: Pipeline) -> None:
    answer = pipeline.client.post(
        f"/api/v1/system/webhooks/disk_image/built/{pipeline.webhook_id}",
        content=(b"a" * 10_000 for _ in range(1000)),
    )
    assert _answer(answer) == (413, "error", "too_large")


# the same delivery


def test_a_replay_of_a_plain_body_is_a_hit_for_a_day(
    platform: Platform, pipeline: Pipeline, clock: Clock
) -> None:
    first = pipeline.plain()
    clock.pass_by(hours=23, minutes=59)
    again = pipeline.plain()
    assert _answer(again) == (200, "idempotent_hit", None)
    assert again.json()["publication_id"] == first.json()["publication_id"]
    clock.pass_by(minutes=2)
    assert _answer(pipeline.plain())[0] == 202
    assert _answer(pipeline.plain())[0] == 200
    assert len(_rows(platform)) == 2


def test_a_webhook_id_names_one_delivery(platform: Platform, pipeline: Pipeline, clock: Clock) -> None:
    first = pipeline.standard("msg_1")
    clock.pass_by(days=2)
    again = pipeline.standard("msg_1")
    assert _answer(first) == (202, "queued", None)
    assert _answer(again) == (200, "idempotent_hit", None)
    assert again.json()["publication_id"] == first.json()["publication_id"]
    assert _answer(pipeline.standard("msg_1", git_sha=SHA)) == (409, "conflict", "delivery_mismatch")
    assert len(_rows(platform)) == 1


def test_a_delivery_stripped_of_its_id_is_the_same_delivery(platform: Platform, pipeline: Pipeline) -> None:
    """Who recorded a delivery with both signatures can't replay it by the plain one alone."""
    body = pipeline.body()
    both = {**standard(pipeline.secret, body, pipeline.clock(), "msg_1"), **plain(pipeline.secret, body)}
    first = pipeline.send(body, both)
    stripped = pipeline.send(body, plain(pipeline.secret, body))
    assert (_answer(first)[0], _answer(stripped)[0]) == (202, 200)
    assert len(_rows(platform)) == 1


def test_an_invalid_delivery_does_not_use_up_its_id(pipeline: Pipeline) -> None:
    assert _answer(pipeline.standard("msg_1", arch="x86"))[0] == 422
    assert _answer(pipeline.standard("msg_1"))[0] == 202


@pytest.mark.parametrize("minutes", [-5.1, 5.1, -60 * 24, 60 * 24])
def test_a_stale_signature_is_refused(pipeline: Pipeline, clock: Clock, minutes: float) -> None:
    body = pipeline.body()
    headers = standard(pipeline.secret, body, clock(), "msg_1")
    clock.pass_by(minutes=minutes)
    assert _answer(pipeline.send(body, headers)) == (401, "error", "bad_signature")


def test_a_signature_within_five_minutes_holds(pipeline: Pipeline, clock: Clock) -> None:
    body = pipeline.body()
    headers = standard(pipeline.secret, body, clock(), "msg_1")
    clock.pass_by(minutes=4.9)
    assert _answer(pipeline.send(body, headers))[0] == 202


def test_a_plain_signature_does_not_save_a_wrong_standard_one(pipeline: Pipeline, clock: Clock) -> None:
    body = pipeline.body()
    wrong = standard("pndis_wrong", body, clock(), "msg_1")
    for headers in (wrong, {"webhook-id": "msg_1"}, {"webhook-signature": ""}):
        answer = pipeline.send(body, {**headers, **plain(pipeline.secret, body)})
        assert _answer(answer) == (401, "error", "bad_signature")


def test_a_webhook_can_refuse_plain_signatures(api: Api, pipeline: Pipeline) -> None:
    api.patch(f"/disk_image_webhooks/{pipeline.webhook_id}", {"plain_signatures": False})
    assert _answer(pipeline.plain()) == (401, "error", "bad_signature")
    assert _answer(pipeline.standard())[0] == 202


# the same image


def test_an_image_that_is_there_is_a_hit(platform: Platform, pipeline: Pipeline, clock: Clock) -> None:
    first = pipeline.standard(git_sha=SHA, sha256=DIGEST).json()["publication_id"]
    _publish(platform, clock, first)
    (before,) = _rows(platform)
    clock.pass_by(days=2)
    for fields in (
        {"git_sha": SHA},
        {"git_sha": SHA, "sha256": DIGEST},
        {"git_sha": SHA, "sha256": DIGEST, "oci_ref": "registry.example/os/debian:retagged"},
        {"git_sha": "b" * 40, "sha256": DIGEST},
        {"oci_ref": f"registry.example/os/debian@sha256:{DIGEST}"},
    ):
        answer = pipeline.standard(**fields)
        assert _answer(answer) == (200, "idempotent_hit", None), fields
        assert answer.json()["publication_id"] == first
    (after,) = _rows(platform)
    assert _columns(after) == _columns(before)


def test_another_image_of_a_published_commit_is_a_conflict(
    platform: Platform, pipeline: Pipeline, clock: Clock
) -> None:
    first = pipeline.plain(git_sha=SHA, sha256=DIGEST).json()["publication_id"]
    _publish(platform, clock, first)
    for send in (pipeline.plain, pipeline.standard):
        answer = send(git_sha=SHA, sha256="b" * 64)
        assert _answer(answer) == (409, "conflict", "published_artifact_mismatch")
        assert answer.json()["publication_id"] == first
    (row,) = _rows(platform)
    assert (row.status, row.sha256) == ("published", DIGEST)


def test_the_same_commit_for_another_platform_is_another_publication(
    platform: Platform, api: Api, pipeline: Pipeline
) -> None:
    api.post("/node_platforms", {"node_platform": {"name": "router"}})
    assert _answer(pipeline.plain(git_sha=SHA))[0] == 202
    assert _answer(pipeline.plain(git_sha=SHA, platform_slug="router"))[0] == 202
    assert _answer(pipeline.plain(git_sha=SHA, arch="arm64"))[0] == 202
    assert len(_rows(platform)) == 3


def test_a_failed_image_can_be_reported_again(platform: Platform, pipeline: Pipeline, clock: Clock) -> None:
    first = pipeline.standard(git_sha=SHA).json()["publication_id"]

    def fail(session: Any) -> None:
        move(session.scalars(select(Publication)).one(), Transition.MARK_FAILED, clock())

    platform.database.write_now(fail)
    again = pipeline.standard(git_sha=SHA)
    assert _answer(again)[0] == 202
    assert again.json()["publication_id"] != first


def test_an_unknown_webhook_takes_the_same_steps_as_a_known_one(
    api: Api,
    made: Made,
    platform: Platform,
    pipeline: Pipeline,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Timing: as many statements, opened secrets and HMACs whether there is such a webhook, it is disabled,
    it was rotated, or its signature is right.
    """
    # Nobody else works with this database object, as the served one's sweeps do.
    watched = made.open(platform.settings, clock)
    intake = Intake(watched)
    taken: list[str] = []
    opening, digest = Sealer.open, hmac.digest

    def opened(sealer: Sealer, sealed: bytes, owner: str) -> str:
        taken.append("open")
        return opening(sealer, sealed, owner)

    def digested(*arguments: Any) -> bytes:
        taken.append("hmac")
        return digest(*arguments)

    def steps(webhook_id: str, secret: str) -> list[str]:
        body = pipeline.body()
        headers = SignatureHeaders(plain=plain(secret, body)["x-powernode-signature"])
        taken.clear()
        with monkeypatch.context() as patched:
            patched.setattr(Sealer, "open", opened)
            patched.setattr(hmac, "digest", digested)
            listening.listen(watched.database.engine, "before_cursor_execute", executed)
            anyio.run(intake.take, Received(webhook_id, body, headers, "127.0.0.1"))
            listening.remove(watched.database.engine, "before_cursor_execute", executed)
        return list(taken)

    def executed(*_: object) -> None:
        taken.append("statement")

    refused = steps(pipeline.webhook_id, "pndis_wrong")
    # the savepoint, the webhook, the savepoint's end; on SQLite the transaction's beginning is one as well
    begins = ["statement"] * (3 if watched.database.is_sqlite else 2)
    assert refused[: len(begins) + 4] == [*begins, "open", "open", "hmac", "hmac"]
    assert steps(str(new_id()), pipeline.secret) == refused
    assert steps("nonsense", pipeline.secret) == refused
    accepted = steps(pipeline.webhook_id, pipeline.secret)
    assert accepted[: len(begins) + 4] == refused[: len(begins) + 4]
    assert len(accepted) > len(refused)
    api.post(f"/disk_image_webhooks/{pipeline.webhook_id}/rotate_secret")
    assert steps(pipeline.webhook_id, "pndis_wrong") == refused
    api.patch(f"/disk_image_webhooks/{pipeline.webhook_id}", {"status": "disabled"})
    assert steps(pipeline.webhook_id, pipeline.secret) == refused
    watched.database.close()


# rates


@pytest.fixture
def settings() -> Settings:
    return Settings(
        workers=0,
        limits=replace(Limits(), deliveries=0.001, deliveries_burst=150, refusals=0.001, refusals_burst=50),
    )


def test_too_many_deliveries_are_429(platform: Platform, pipeline: Pipeline) -> None:
    answers = [pipeline.plain(size_bytes=number + 1) for number in range(151)]
    assert [each.status_code for each in answers] == [202] * 150 + [429]
    assert _answer(answers[-1]) == (429, "error", "rate_limited")
    assert int(answers[-1].headers["retry-after"]) == 1000
    assert len(_rows(platform)) == 150


def test_too_many_refused_deliveries_are_429(pipeline: Pipeline) -> None:
    statuses = [pipeline.send(b"{}", {"x-powernode-signature": "0"}).status_code for _ in range(51)]
    assert statuses == [401] * 50 + [429]


@pytest.mark.parametrize("believed", [False, True])
def test_addresses_behind_a_proxy_are_told_apart_if_it_is_believed(
    made: Made, settings: Settings, clock: Clock, believed: bool
) -> None:
    """Else anyone could have any address."""
    limited = replace(settings, proxies=("127.0.0.1",) if believed else ())
    platform = made.open(limited, clock)
    statuses = []
    with serving(platform) as (host, port):
        path = f"http://{host}:{port}/api/v1/system/webhooks/disk_image/built/{new_id()}"
        for number in range(51):
            headers = {"x-forwarded-for": f"198.51.100.{number}"}
            statuses.append(httpx.post(path, headers=headers, trust_env=False, timeout=60).status_code)
    platform.database.close()
    assert statuses == [404] * 50 + [404 if believed else 429]


def test_deliveries_are_kept_whole_or_not_at_all(
    platform: Platform, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that fails at the end leaves neither publication, nor job, nor delivery, nor count."""

    def fails(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("platform_server.deliveries.remember", fails)
    assert pipeline.plain().status_code == 500
    counts = [select(func.count(table.id)) for table in (Publication, Job, Delivery)]
    assert platform.database.read_now(lambda on: [on.scalar(each) for each in counts]) == [0, 0, 0]
    monkeypatch.undo()
    assert pipeline.plain().status_code == 202
