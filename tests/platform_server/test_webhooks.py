"""Webhooks managed: made once, rotated with an overlap, disabled, revoked; secrets shown once and sealed."""

from __future__ import annotations

import pytest

from platform_server.state_folder import Platform
from platform_server.webhooks import LONGEST_OVERLAP
from tests.platform_server.api import Api, Pipeline, plain
from tests.platform_server.clock import Clock
from tests.platform_server.made import Made


def test_a_new_webhook_has_an_address_and_a_secret(api: Api) -> None:
    made = api.post("/disk_image_webhooks", {"label": "CI"})
    assert made["webhook_url"].endswith(f"/api/v1/system/webhooks/disk_image/built/{made['webhook_id']}")
    assert made["webhook_secret"].startswith("pndis_")
    assert len(made["webhook_secret"]) == len("pndis_") + 43
    shown = made["disk_image_webhook"]
    assert (shown["label"], shown["status"], shown["received_count"]) == ("CI", "active", 0)
    assert shown["secret_preview"] == made["webhook_secret"][:8]
    assert api.get(f"/disk_image_webhooks/{made['webhook_id']}")["disk_image_webhook"] == shown


def test_the_secret_is_in_no_later_answer_and_not_in_the_database(
    api: Api, pipeline: Pipeline, made: Made
) -> None:
    path = f"/disk_image_webhooks/{pipeline.webhook_id}"
    answers = [
        api.call("GET", path),
        api.call("GET", "/disk_image_webhooks"),
        api.call("PATCH", path, json={}),
    ]
    assert all(pipeline.secret not in answer.text for answer in answers)
    stored = made.content()
    assert pipeline.secret.encode() not in stored
    assert pipeline.secret[8:].encode() not in stored


def test_labels_are_unique_in_an_account_whatever_their_case_and_form(api: Api, other: Api) -> None:
    api.post("/disk_image_webhooks", {"label": "Straße"})
    api.post("/disk_image_webhooks", {"label": "caf\u00e9 fi"})
    for same in ("cafe\u0301 fi", "caf\u00e9 \ufb01", "\uff23\uff21\uff26\u00c9 fi"):
        assert "label" in api.error(422, "POST", "/disk_image_webhooks", json={"label": same})
    for same in ("Straße", "STRASSE", " straße "):
        assert "label" in api.error(422, "POST", "/disk_image_webhooks", json={"label": same})
    other.post("/disk_image_webhooks", {"label": "Straße"})


# what a terminal obeys, or nobody sees
UNPRINTABLE = ("a\x9b31m", "a\u202eb", "\u200b", "a\u2028b", "a\ue000", "a\U000e0041")


@pytest.mark.parametrize("label", ["", "  ", "a" * 101, "a\nb", "a\x00", None, 5, *UNPRINTABLE])
def test_a_label_has_a_rule(api: Api, label: object) -> None:
    assert "label" in api.error(422, "POST", "/disk_image_webhooks", json={"label": label})


def test_both_secrets_count_during_the_overlap(api: Api, pipeline: Pipeline, clock: Clock) -> None:
    path = f"/disk_image_webhooks/{pipeline.webhook_id}"
    rotated = api.post(f"{path}/rotate_secret", {"overlap_seconds": 600})
    new = Pipeline(api.client, clock, pipeline.webhook_id, rotated["webhook_secret"])
    assert rotated["webhook_secret"] != pipeline.secret
    assert rotated["disk_image_webhook"]["secret_preview"] == rotated["webhook_secret"][:8]
    assert rotated["disk_image_webhook"]["last_rotated_at"] == "2026-03-01T12:00:00Z"
    assert pipeline.standard().status_code == new.standard().status_code == 202
    clock.pass_by(minutes=11)
    assert (pipeline.standard().status_code, new.standard().status_code) == (401, 202)


def test_a_rotation_without_overlap_ends_the_old_secret_at_once(
    api: Api, pipeline: Pipeline, clock: Clock
) -> None:
    path = f"/disk_image_webhooks/{pipeline.webhook_id}/rotate_secret"
    second = api.post(path, {"overlap_seconds": 600})["webhook_secret"]
    third = api.post(path, {"overlap_seconds": 0})["webhook_secret"]
    for secret, status in ((pipeline.secret, 401), (second, 401), (third, 202)):
        assert Pipeline(api.client, clock, pipeline.webhook_id, secret).standard().status_code == status


def test_a_rotation_without_a_body_overlaps_an_hour(api: Api, pipeline: Pipeline, clock: Clock) -> None:
    api.post(f"/disk_image_webhooks/{pipeline.webhook_id}/rotate_secret")
    clock.pass_by(minutes=59)
    assert pipeline.standard().status_code == 202
    clock.pass_by(minutes=2)
    assert pipeline.standard().status_code == 401


def test_a_rotation_is_an_event_without_the_secret(api: Api, pipeline: Pipeline) -> None:
    rotated = api.post(f"/disk_image_webhooks/{pipeline.webhook_id}/rotate_secret")
    (event,) = api.get("/events", kind_prefix="system.disk_image_webhook")["events"]
    assert event["kind"] == "system.disk_image_webhook_secret_rotated"
    assert event["payload"]["webhook_id"] == pipeline.webhook_id
    assert rotated["webhook_secret"] not in str(event)


@pytest.mark.parametrize("overlap", [-1, int(LONGEST_OVERLAP.total_seconds()) + 1, 10**30, "600", 1.5])
def test_an_overlap_has_bounds(api: Api, pipeline: Pipeline, overlap: object) -> None:
    path = f"/disk_image_webhooks/{pipeline.webhook_id}/rotate_secret"
    assert "overlap_seconds" in api.error(422, "POST", path, json={"overlap_seconds": overlap})


def test_a_revoked_webhook_stays_so_and_keeps_no_secret(
    api: Api, pipeline: Pipeline, platform: Platform
) -> None:
    path = f"/disk_image_webhooks/{pipeline.webhook_id}"
    assert api.delete(path)["disk_image_webhook"]["status"] == "revoked"
    assert api.delete(path)["disk_image_webhook"]["status"] == "revoked"
    api.error(409, "PATCH", path, json={"status": "active"})
    api.error(409, "POST", f"{path}/rotate_secret")
    body = pipeline.body()
    assert pipeline.send(body, plain("", body)).status_code == 404


def test_a_status_that_is_none_is_refused(api: Api, pipeline: Pipeline) -> None:
    path = f"/disk_image_webhooks/{pipeline.webhook_id}"
    for status in ("revoked", "on", ""):
        assert "status" in api.error(422, "PATCH", path, json={"status": status})


def test_another_account_sees_and_changes_nothing(api: Api, other: Api, pipeline: Pipeline) -> None:
    path = f"/disk_image_webhooks/{pipeline.webhook_id}"
    assert other.get("/disk_image_webhooks")["disk_image_webhooks"] == []
    for method, target in (
        ("GET", path), ("PATCH", path), ("DELETE", path), ("POST", f"{path}/rotate_secret"),
    ):  # fmt: skip
        other.error(404, method, target, json={} if method != "GET" else None)
    assert pipeline.standard().status_code == 202


def test_the_list_is_paged_newest_first(api: Api) -> None:
    made = [api.post("/disk_image_webhooks", {"label": f"{n}"})["webhook_id"] for n in range(5)]
    first = api.get("/disk_image_webhooks", limit=3)
    rest = api.get("/disk_image_webhooks", limit=3, before=first["meta"]["next"])
    assert [row["id"] for row in first["disk_image_webhooks"] + rest["disk_image_webhooks"]] == made[::-1]
    assert (first["meta"]["count"], rest["meta"]["count"], rest["meta"]["next"]) == (3, 2, None)


def test_the_actions_provision_and_list(api: Api, other: Api) -> None:
    made = api.post("/actions/provision_disk_image_webhook", {"label": "CI"})
    assert made["webhook_secret"].startswith("pndis_")
    base = {"label": "outside", "platform_api_base": "https://platform.example/"}
    outside = api.post("/actions/provision_disk_image_webhook", base)
    assert outside["webhook_url"] == (
        f"https://platform.example/api/v1/system/webhooks/disk_image/built/{outside['webhook_id']}"
    )
    for wrong in (
        "javascript:x",
        "https://user@host",
        "https://host?x=1",
        "https://a b",
        "https://a\u202eb",
        "https://a\x9b",
    ):
        body = {"label": "x", "platform_api_base": wrong}
        assert "platform_api_base" in api.error(
            422, "POST", "/actions/provision_disk_image_webhook", json=body
        )
    listed = api.post("/actions/system_list_disk_image_webhooks", {})
    assert [each["label"] for each in listed["webhooks"]] == ["outside", "CI"]
    assert listed["count"] == 2
    assert made["webhook_secret"] not in str(listed)
    assert other.post("/actions/system_list_disk_image_webhooks", {}) == {"webhooks": [], "count": 0}


def test_a_slash_too_many_leads_nowhere(api: Api, pipeline: Pipeline) -> None:
    """A redirect would send what was signed, or a token, to whatever host the request named."""
    for path in ("/events/", "/disk_image_webhooks/", f"/webhooks/disk_image/built/{pipeline.webhook_id}/"):
        for method in ("GET", "POST"):
            answer = api.call(method, path, headers={"host": "elsewhere.example"}, json={})
            assert (answer.status_code, answer.headers.get("location")) == (404, None)
