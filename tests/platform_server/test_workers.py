"""CI workers: tokens that are shown once, and what they open."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from platform_server.permissions import Permission
from platform_server.state_folder import Platform
from platform_server.tables import Account, Worker, WorkerRole
from platform_server.tokens import WORKER_PREFIX, digest_of, new_token
from tests.platform_server.api import Api
from tests.platform_server.clock import Clock
from tests.platform_server.made import Made

INITIATE = "/worker_api/disk_image_publications/initiate"


@pytest.fixture
def service(platform: Platform, clock: Clock, api: Api) -> str:
    """The id of a worker of another role."""

    def make(on):  # type: ignore[no-untyped-def]
        row = Worker(
            account_id=on.scalars(select(Account.id)).first(),
            name="sweeps",
            role=WorkerRole.SERVICE,
            token_digest=new_token(WORKER_PREFIX)[1],
            created_at=clock(),
            updated_at=clock(),
        )
        on.add(row)
        on.flush()
        return str(row.id)

    made: str = platform.database.write_now(make)
    return made


def _digest(platform: Platform, name: str) -> bytes:
    return platform.database.read_now(
        lambda on: on.scalars(select(Worker.token_digest).where(Worker.name == name)).one()
    )


def test_create_shows_the_token_once(api: Api, platform: Platform, made: Made) -> None:
    created = api.post("/ci_workers", {"name": "runner", "description": "builds images"})
    token = created["token_plaintext"]
    assert token.startswith("swt_")
    assert len(token) > 40
    assert "POWERNODE_CI_WORKER_TOKEN" in created["note"]
    worker = created["ci_worker"]
    assert (worker["name"], worker["status"], worker["roles"]) == ("runner", "active", ["ci_worker"])
    assert worker["last_seen_at"] is None
    assert _digest(platform, "runner") == digest_of(token)
    shown = api.get(f"/ci_workers/{worker['id']}")
    assert shown == {"ci_worker": worker}
    assert token not in str(api.get("/ci_workers"))
    content = made.content()
    assert token.encode() not in content


def test_a_list_has_the_accounts_ci_workers_alone(api: Api, other: Api, service: str) -> None:
    first = api.post("/ci_workers", {"name": "first"})["ci_worker"]
    second = api.post("/ci_workers", {"name": "first"})["ci_worker"]
    other.post("/ci_workers", {"name": "theirs"})
    listed = api.get("/ci_workers")
    assert [each["id"] for each in listed["ci_workers"]] == [second["id"], first["id"]]
    assert listed["count"] == 2
    page = api.get("/ci_workers", limit=1)
    assert page["meta"]["next"] == second["id"]


def test_a_worker_of_another_role_is_none_here(api: Api, service: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate_token")):
        assert "not a ci_worker" in api.error(404, method, f"/ci_workers/{service}{path}")


def test_the_actions_provision_list_and_terminate(api: Api, other: Api, service: str) -> None:
    made = api.post("/actions/system_provision_ci_worker", {"name": "runner", "description": "builds"})
    assert made["token_plaintext"].startswith("swt_")
    assert made["note"]
    other.post("/actions/system_provision_ci_worker", {"name": "theirs"})
    listed = api.post("/actions/system_list_ci_workers", {})
    assert listed == {"ci_workers": [made["ci_worker"]], "workers": [made["ci_worker"]], "count": 1}
    worker = made["ci_worker"]["id"]
    terminate = "/actions/system_terminate_ci_worker"
    other.error(404, "POST", terminate, json={"worker_id": worker})
    assert api.post(terminate, {"id": worker}) == {"revoked": True, "worker_id": worker}
    assert api.post(terminate, {"worker_id": worker}) == {"revoked": True, "worker_id": worker}
    api.with_token(made["token_plaintext"]).error(401, "POST", INITIATE, json={})


def test_the_action_refuses_a_worker_of_another_role(api: Api, service: str) -> None:
    error = api.error(404, "POST", "/actions/system_terminate_ci_worker", json={"worker_id": service})
    assert "not a ci_worker" in error


def test_other_accounts_workers_are_not_there(api: Api, other: Api) -> None:
    theirs = other.post("/ci_workers", {"name": "theirs"})["ci_worker"]["id"]
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate_token")):
        api.error(404, method, f"/ci_workers/{theirs}{path}")


def test_rotate_changes_the_digest_and_tells_it(api: Api, platform: Platform, clock: Clock) -> None:
    created = api.post("/ci_workers", {"name": "runner"})
    worker, old = created["ci_worker"]["id"], created["token_plaintext"]
    before = _digest(platform, "runner")
    new = api.post(f"/ci_workers/{worker}/rotate_token")["token_plaintext"]
    assert new.startswith("swt_")
    assert _digest(platform, "runner") not in (before, digest_of(old))
    api.with_token(old).error(401, "POST", INITIATE, json={})
    api.with_token(new).error(422, "POST", INITIATE, json={})
    (event,) = api.get("/events", kind_prefix="system.ci_worker_token_rotated")["events"]
    assert event["payload"]["worker_id"] == worker
    assert event["severity"] == "medium"


def test_terminate_revokes_for_good(api: Api) -> None:
    created = api.post("/ci_workers", {"name": "runner"})
    worker = created["ci_worker"]["id"]
    for _ in range(2):
        ended = api.delete(f"/ci_workers/{worker}")
        assert (ended["revoked"], ended["worker_id"], ended["ci_worker"]["status"]) == (
            True,
            worker,
            "revoked",
        )
    api.with_token(created["token_plaintext"]).error(401, "POST", INITIATE, json={})
    assert "for good" in api.error(409, "POST", f"/ci_workers/{worker}/rotate_token")


def test_a_worker_is_seen_and_may_publish_alone(api: Api, clock: Clock) -> None:
    created = api.post("/ci_workers", {"name": "runner"})
    worker = api.with_token(created["token_plaintext"])
    error = worker.error(403, "GET", "/ci_workers")
    assert Permission.CI_WORKERS_READ in error
    clock.pass_by(minutes=5)
    worker.error(422, "POST", INITIATE, json={})
    seen = api.get(f"/ci_workers/{created['ci_worker']['id']}")["ci_worker"]["last_seen_at"]
    assert seen == clock().isoformat().replace("+00:00", "Z")


def test_both_headers_for_a_workers_token(api: Api) -> None:
    token = api.post("/ci_workers", {"name": "runner"})["token_plaintext"]
    nobody = api.with_token(None)
    nobody.error(422, "POST", INITIATE, json={}, headers={"x-worker-token": token})
    nobody.error(401, "POST", INITIATE, json={}, headers={"x-worker-token": f"{token}x"})
    nobody.error(401, "POST", INITIATE, json={}, headers={"x-worker-token": ""})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": " "}, "name"),
        ({"name": "a" * 101}, "name"),
        ({"name": "a\x1b[2J"}, "name"),
        ({"name": "a\x9b2J"}, "name"),
        ({"name": "a\u202eb"}, "name"),
        ({"name": "\u200b"}, "name"),
        ({"name": 5}, "name"),
        ({}, "name"),
        ({"name": "a", "role": "service"}, "role"),
        ({"name": "a", "description": "\x00"}, "description"),
        ({"name": "a", "description": "a" * 1001}, "description"),
    ],
)
def test_bad_input_names_the_field(api: Api, body: dict[str, object], field: str) -> None:
    assert field in api.error(422, "POST", "/ci_workers", json=body)
    assert api.get("/ci_workers")["ci_workers"] == []
