"""The Disk Image Manager: what it does by which policy, what it asks, and what people decide."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import anyio
import pytest
from sqlalchemy import select

from platform_server import sweeps
from platform_server.accounts import user_token
from platform_server.manager.tick import tick
from platform_server.permissions import Permission
from platform_server.state_folder import Platform
from platform_server.states import Status, Transition, move
from platform_server.tables import ApprovalRequest, Publication, RequestStatus
from tests.platform_server.api import Api
from tests.platform_server.clock import START, Clock
from tests.platform_server.conftest import Made
from tests.platform_server.published import Publish

PROMOTE = "system.disk_image_publication_promote"
ROLLBACK = "system.disk_image_publication_rollback"
RETENTION = "system.disk_image_retention_update"
REVOKE = "system.disk_image_webhook_revoke"
ROTATE = "system.disk_image_webhook_rotate_secret"
Tick = Callable[[], None]


@pytest.fixture
def manage(platform: Platform) -> Tick:
    """The manager's turn."""
    return lambda: anyio.run(tick, platform)


def _set(api: Api, policy: str | None, category: str = PROMOTE, platform_id: str | None = None) -> None:
    each = {"action_category": category, "policy": policy, "node_platform_id": platform_id}
    api.patch("/autonomy", {"updates": [each]})


def _default(api: Api, platform_id: str) -> str:
    found: str = api.get(f"/node_platforms/{platform_id}")["node_platform"]["default_publication_id"]
    return found


def _requests(api: Api, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get("/approval_requests", **query)["approval_requests"]
    return found


def _pending(api: Api) -> dict[str, Any]:
    (found,) = _requests(api, status="pending")
    return found


def _kinds(api: Api) -> list[str]:
    """What the manager told, the oldest first."""
    events = api.get("/events", limit=200)["events"]
    return [each["kind"] for each in reversed(events) if each["source"] == "disk_image_manager"]


def _set_default(api: Api, publication_id: str) -> None:
    api.post("/actions/system_set_default_disk_image_publication", {"publication_id": publication_id})


# policies


@pytest.mark.parametrize("policy", ["auto_approve", "notify_and_proceed"])
def test_a_newer_image_becomes_the_default_by_policy(
    api: Api, platform_id: str, publish: Publish, manage: Tick, policy: str
) -> None:
    _set(api, policy)
    first, second = publish(), publish()
    assert _default(api, platform_id) == first
    manage()
    assert _default(api, platform_id) == second
    manage()
    set_default = ["system.disk_image_default_set"]
    notified = ["system.disk_image_manager_proceeded"] if policy == "notify_and_proceed" else []
    assert _kinds(api) == set_default + notified
    (event,) = api.get("/events", kind_prefix="system.disk_image_default_set")["events"]
    assert (event["payload"]["publication_id"], event["payload"]["prior_publication_id"]) == (second, first)
    assert event["payload"]["by_user_id"] is None


def test_of_several_newer_images_the_newest_becomes_the_default(
    api: Api, platform_id: str, publish: Publish, manage: Tick
) -> None:
    _set(api, "auto_approve")
    *_, newest = publish(), publish(), publish()
    manage()
    assert _default(api, platform_id) == newest
    assert _kinds(api) == ["system.disk_image_default_set"]


@pytest.mark.parametrize("policy", ["silent", "block"])
def test_silent_and_block_do_nothing_until_the_policy_changes(
    api: Api, platform_id: str, publish: Publish, manage: Tick, policy: str
) -> None:
    _set(api, policy)
    first, second = publish(), publish()
    manage()
    assert (_default(api, platform_id), _requests(api), _kinds(api)) == (first, [], [])
    _set(api, "auto_approve")
    manage()
    assert _default(api, platform_id) == second


def test_a_default_that_somebody_chose_is_not_undone(
    api: Api, platform_id: str, publish: Publish, manage: Tick
) -> None:
    _set(api, "auto_approve")
    _first, second, third = publish(), publish(), publish()
    _set_default(api, second)
    manage()
    assert _default(api, platform_id) == second
    _set_default(api, third)
    api.post(f"/node_platforms/{platform_id}/rollback_disk_image")
    manage()
    assert _default(api, platform_id) == second
    fourth = publish()
    manage()
    assert _default(api, platform_id) == fourth


def test_a_candidate_that_was_retired_is_left_alone(
    api: Api, platform: Platform, platform_id: str, publish: Publish, manage: Tick
) -> None:
    _set(api, "auto_approve")
    first, second = publish(), publish()
    platform.database.write_now(
        lambda on: move(on.get_one(Publication, UUID(second)), Transition.RETIRE, START)
    )
    manage()
    assert (_default(api, platform_id), _kinds(api)) == (first, [])


def test_the_most_specific_policy_counts(api: Api, platform_id: str, publish: Publish, manage: Tick) -> None:
    _set(api, "auto_approve")
    _set(api, "silent", platform_id=platform_id)
    first, second = publish(), publish()
    manage()
    assert _default(api, platform_id) == first
    _set(api, None, platform_id=platform_id)
    manage()
    assert _default(api, platform_id) == second


def test_policies_of_the_account_and_their_defaults(api: Api, platform_id: str) -> None:
    answer = api.get("/autonomy")
    assert {name: rows[0]["policy"] for name, rows in answer["policies"]["by_action"].items()} == {
        PROMOTE: "require_approval",
        ROLLBACK: "require_approval",
        RETENTION: "auto_approve",
        REVOKE: "require_approval",
        ROTATE: "notify_and_proceed",
    }
    (chain,) = answer["chains"]
    assert chain["name"] == "Disk Image Manager Actions"
    assert chain["approver_permission"] == "system.infra_tasks.control"
    assert (chain["timeout_seconds"], chain["suppression_seconds"]) == (12 * 3600, 3600)
    _set(api, "silent", platform_id=platform_id)
    rows = api.post("/actions/get_autonomy", {})["policies"]["by_action"][PROMOTE]
    assert [(row["policy"], row["scope"], row["node_platform_id"]) for row in rows] == [
        ("require_approval", "default", None),
        ("silent", "node_platform", platform_id),
    ]
    (event,) = api.get("/events", kind_prefix="system.autonomy_policy_updated")["events"]
    assert event["payload"] == {
        "action_category": PROMOTE,
        "policy": "silent",
        "prior_policy": None,
        "node_platform_id": platform_id,
        "platform_name": "debian",
        "by_user_id": rows[1]["updated_by_id"],
    }


def test_updates_are_carried_out_all_or_none(api: Api, other: Api, platform_id: str) -> None:
    right = {"action_category": ROLLBACK, "policy": "block"}
    agent_id = other.get("/agents")["agents"][0]["id"]
    wrong = [
        right,
        {"action_category": "system.fleet_reboot", "policy": "block"},
        {"action_category": PROMOTE, "policy": "perhaps"},
        {"action_category": REVOKE, "policy": "block", "node_platform_id": platform_id},
        {"action_category": PROMOTE, "policy": "block", "node_platform_id": agent_id},
        {"action_category": PROMOTE, "policy": "block", "agent_id": agent_id},
    ]
    before = api.get("/autonomy")
    error = api.error(422, "PATCH", "/autonomy", json={"updates": wrong})
    assert [each.split(":")[0] for each in error.split("; ")] == [
        "updates[1].action_category",
        "updates[2].policy",
        "updates[3].node_platform_id",
        "updates[4].node_platform_id",
        "updates[5].agent_id",
    ]
    assert "found 'perhaps'" in error
    assert api.get("/autonomy") == before
    assert "at least one" in api.error(422, "PATCH", "/autonomy", json={"updates": []})
    own = api.get("/agents")["agents"][0]["id"]
    both = [{**right, "agent_id": own}, {"action_category": PROMOTE, "policy": "silent"}]
    assert api.post("/actions/update_autonomy", {"updates": both}) == {"changed": 2}
    assert api.patch("/autonomy", {"updates": both}) == {"changed": 0}
    assert other.get("/autonomy")["policies"]["by_action"][ROLLBACK][0]["policy"] == "require_approval"


def test_what_is_blocked_nobody_does(api: Api, platform_id: str, publish: Publish) -> None:
    first, second = publish(), publish()
    webhook = api.post("/disk_image_webhooks", {"label": "pipeline"})["webhook_id"]
    path = f"/node_platforms/{platform_id}"
    for category in (PROMOTE, ROLLBACK, RETENTION, REVOKE, ROTATE):
        _set(api, "block", category)
    blocked: list[tuple[str, str, Any]] = [
        ("POST", f"{path}/disk_image_publications/{second}/set_default", None),
        ("POST", "/actions/system_set_default_disk_image_publication", {"publication_id": second}),
        ("POST", f"{path}/rollback_disk_image", {"publication_id": second}),
        ("PATCH", path, {"node_platform": {"disk_image_retention_count": 1}}),
        (
            "POST",
            "/actions/system_set_disk_image_retention",
            {"node_platform_id": platform_id, "retention_count": 1},
        ),
        ("POST", f"/disk_image_webhooks/{webhook}/rotate_secret", None),
        ("DELETE", f"/disk_image_webhooks/{webhook}", None),
    ]
    for method, target, body in blocked:
        assert "blocked by policy" in api.error(409, method, target, json=body)
    assert _default(api, platform_id) == first
    api.patch(path, {"node_platform": {"description": "still free"}})
    for category in (PROMOTE, ROLLBACK, RETENTION, REVOKE, ROTATE):
        _set(api, "silent", category)
    for method, target, body in blocked:
        api.call(method, target, json=body).raise_for_status()


def test_a_policy_goes_with_its_node_platform(api: Api, platform_id: str) -> None:
    _set(api, "silent", platform_id=platform_id)
    api.delete(f"/node_platforms/{platform_id}")
    (row,) = api.get("/autonomy")["policies"]["by_action"][PROMOTE]
    assert row["scope"] == "default"


# approvals


def test_a_request_is_asked_once_and_approved(
    api: Api, platform_id: str, publish: Publish, manage: Tick, clock: Clock
) -> None:
    first, second = publish(), publish()
    manage()
    manage()
    asked = _pending(api)
    assert (asked["publication_id"], asked["prior_publication_id"]) == (second, first)
    assert asked["action_category"] == PROMOTE
    assert _default(api, platform_id) == first
    clock.pass_by(minutes=7)
    answer = api.post(f"/approval_requests/{asked['id']}/approve", {"reason": "tested"})
    assert answer["result"]["publication_id"] == second
    assert answer["result"]["prior_publication_id"] == first
    assert _default(api, platform_id) == second
    decided = api.get(f"/approval_requests/{asked['id']}")["approval_request"]
    assert decided == answer["approval_request"]
    assert (decided["status"], decided["decided_by"], decided["reason"]) == ("approved", "admin", "tested")
    assert decided["decided_at"] == clock().isoformat().replace("+00:00", "Z")
    manage()
    assert _kinds(api) == [
        "system.disk_image_approval_requested",
        "system.disk_image_default_set",
        "system.disk_image_approval_approved",
    ]
    (event,) = api.get("/events", kind_prefix="system.disk_image_default_set")["events"]
    assert event["payload"]["by_user_id"] == decided["decided_by_id"]


def test_a_rejected_request_is_asked_again_after_an_hour(
    api: Api, platform_id: str, publish: Publish, manage: Tick, clock: Clock
) -> None:
    first, _second = publish(), publish()
    manage()
    asked = _pending(api)
    body = {"approval_request_id": asked["id"], "reason": "not on a Friday"}
    rejected = api.post("/actions/reject_request", body)["approval_request"]
    assert (rejected["status"], rejected["reason"]) == ("rejected", "not on a Friday")
    clock.pass_by(minutes=59)
    manage()
    assert _requests(api, status="pending") == []
    clock.pass_by(minutes=2)
    manage()
    assert _pending(api)["publication_id"] == asked["publication_id"]
    assert _default(api, platform_id) == first


def test_a_newer_image_is_asked_about_at_once(api: Api, publish: Publish, manage: Tick) -> None:
    publish(), publish()
    manage()
    api.post(f"/approval_requests/{_pending(api)['id']}/reject")
    third = publish()
    manage()
    assert _pending(api)["publication_id"] == third
    fourth = publish()
    manage()
    assert _pending(api)["publication_id"] == fourth
    assert [row["status"] for row in _requests(api)] == ["pending", "superseded", "rejected"]
    assert _requests(api)[1]["reason"] == f"publication {fourth} is newer"


def test_a_request_that_nobody_decides_expires(
    api: Api, platform_id: str, publish: Publish, manage: Tick, clock: Clock
) -> None:
    publish(), publish()
    manage()
    asked = _pending(api)
    clock.pass_by(hours=12)
    assert "expired" in api.error(409, "POST", f"/approval_requests/{asked['id']}/approve")
    manage()
    (row,) = _requests(api)
    assert (row["status"], row["decided_by"]) == ("rejected", None)
    assert row["reason"].startswith("expired")
    assert _kinds(api) == ["system.disk_image_approval_requested", "system.disk_image_approval_expired"]
    clock.pass_by(hours=2)
    manage()
    assert _pending(api)["publication_id"] == asked["publication_id"]


@pytest.mark.parametrize("moved", ["newer", "chosen", "retired", "blocked"])
def test_what_is_no_more_as_it_was_is_not_approved(
    api: Api, platform_id: str, publish: Publish, manage: Tick, platform: Platform, moved: str
) -> None:
    first, second = publish(), publish()
    manage()
    asked = _pending(api)
    if moved == "newer":
        publish()
    elif moved == "chosen":
        _set_default(api, second)
    elif moved == "retired":
        _set_default(api, second)
        api.post(f"/node_platforms/{platform_id}/rollback_disk_image")
    else:
        _set(api, "block")
    before = _default(api, platform_id)
    api.error(409, "POST", f"/approval_requests/{asked['id']}/approve")
    assert _pending(api) == asked
    assert _default(api, platform_id) == before
    manage()
    assert api.get(f"/approval_requests/{asked['id']}")["approval_request"]["status"] == "superseded"
    api.error(409, "POST", f"/approval_requests/{asked['id']}/reject")
    assert first != second


def test_when_the_policy_no_longer_asks_the_request_goes(
    api: Api, platform_id: str, publish: Publish, manage: Tick
) -> None:
    _first, second = publish(), publish()
    manage()
    asked = _pending(api)
    _set(api, "auto_approve")
    manage()
    assert _default(api, platform_id) == second
    (row,) = _requests(api)
    assert (row["id"], row["status"], row["reason"]) == (
        asked["id"],
        "superseded",
        "the policy is auto_approve now",
    )


def test_of_many_who_decide_at_once_one_does(
    api: Api, platform_id: str, publish: Publish, manage: Tick
) -> None:
    publish(), publish()
    manage()
    path = f"/approval_requests/{_pending(api)['id']}"
    with ThreadPoolExecutor(8) as pool:
        words = ["approve", "reject"] * 4
        answers = list(pool.map(lambda word: api.call("POST", f"{path}/{word}").status_code, words))
    assert sorted(answers) == [200] + [409] * 7
    decided = [kind for kind in _kinds(api) if kind.endswith(("approved", "rejected"))]
    assert len(decided) == 1


def test_several_processes_tick_at_once_and_it_happens_once(
    api: Api, made: Made, platform: Platform, platform_id: str, publish: Publish, clock: Clock
) -> None:
    _set(api, "notify_and_proceed")
    others = [made.open(platform.settings, clock) for _ in range(3)]
    _first, second = publish(), publish()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: anyio.run(tick, each), [platform, *others]))
    for each in others:
        each.database.close()
    assert _default(api, platform_id) == second
    assert _kinds(api) == ["system.disk_image_default_set", "system.disk_image_manager_proceeded"]


def test_deciding_asks_for_the_reference_permission(
    api: Api, platform: Platform, publish: Publish, manage: Tick, clock: Clock
) -> None:
    publish(), publish()
    manage()
    asked = _pending(api)
    approver = [Permission.INFRA_TASKS_CONTROL]
    token = platform.database.write_now(lambda on: user_token(on, "default", "ann", approver, clock()))
    answer = api.with_token(token).post(f"/approval_requests/{asked['id']}/approve")
    assert answer["approval_request"]["decided_by"] == "ann"


def test_a_decision_can_not_be_changed(api: Api, platform: Platform, publish: Publish, manage: Tick) -> None:
    publish(), publish()
    manage()
    api.post(f"/approval_requests/{_pending(api)['id']}/reject")

    def change(on: Any) -> None:
        on.scalars(select(ApprovalRequest)).one().status = RequestStatus.APPROVED

    with pytest.raises(AssertionError, match="can't change"):
        platform.database.write_now(change)
    (row,) = _requests(api)
    assert row["status"] == "rejected"


def test_requests_are_listed_page_by_page(api: Api, publish: Publish, manage: Tick) -> None:
    publish()
    asked = []
    for _ in range(5):
        publish()
        manage()
        asked.append(_pending(api)["id"])
    found: list[str] = []
    before = None
    while True:
        window = {"limit": 2} | ({} if before is None else {"before": before})
        answer = api.get("/approval_requests", **window)
        found += [row["id"] for row in answer["approval_requests"]]
        before = answer["meta"]["next"]
        if before is None:
            break
    assert found == asked[::-1]
    listed = api.post("/actions/list_approval_requests", {"status": "superseded", "limit": 3})
    assert [row["id"] for row in listed["approval_requests"]] == asked[3:0:-1]


# the agent


def test_a_paused_manager_does_nothing_and_goes_on_where_it_was(
    api: Api, platform_id: str, publish: Publish, manage: Tick
) -> None:
    first, _second = publish(), publish()
    manage()
    asked = _pending(api)
    agent_id = api.get("/agents")["agents"][0]["id"]
    assert api.post(f"/agents/{agent_id}/pause")["agent"]["status"] == "paused"
    _set(api, "auto_approve")
    third = publish()
    manage()
    assert _pending(api) == asked
    assert "is paused" in api.error(409, "POST", f"/approval_requests/{asked['id']}/approve")
    assert _default(api, platform_id) == first
    assert api.post("/actions/resume_agent", {})["agent"]["status"] == "active"
    manage()
    assert _default(api, platform_id) == third
    events = api.get("/events", kind_prefix="system.agent_")["events"]
    assert [event["kind"] for event in events] == ["system.agent_resumed", "system.agent_paused"]


def test_agents_are_found_by_name(api: Api, other: Api) -> None:
    (agent,) = api.post("/actions/list_agents", {"name_contains": "image man"})["agents"]
    assert (agent["name"], agent["status"]) == ("Disk Image Manager", "active")
    assert api.get("/agents", name_contains="Fleet") == {"agents": [], "count": 0}
    (theirs,) = other.get("/agents")["agents"]
    assert theirs["id"] != agent["id"]


def test_introspection_tells_what_happened(
    api: Api, platform_id: str, publish: Publish, manage: Tick, clock: Clock, platform: Platform
) -> None:
    nothing = {
        "total_executions": 0,
        "promoted_by_policy": 0,
        "approvals_requested": 0,
        "approvals_approved": 0,
        "approvals_rejected": 0,
        "approvals_expired": 0,
        "approvals_superseded": 0,
    }
    found = api.post("/actions/agent_introspect", {})
    assert found["performance_24h"] == nothing
    assert found["pending_approvals"] == []
    assert [row["action_category"] for row in found["policies"]] == [
        PROMOTE,
        ROLLBACK,
        RETENTION,
        REVOKE,
        ROTATE,
    ]
    publish(), publish()
    manage()
    asked = _pending(api)
    assert api.post("/actions/agent_introspect", {})["pending_approvals"] == [asked]
    api.post("/actions/approve_request", {"approval_request_id": asked["id"]})
    _set(api, "auto_approve")
    third, _fourth = publish(), publish()
    manage()
    _set_default(api, third)
    agent_id = found["agent"]["id"]
    assert api.get(f"/agents/{agent_id}")["performance_24h"] == nothing | {
        "total_executions": 2,
        "promoted_by_policy": 1,
        "approvals_requested": 1,
        "approvals_approved": 1,
    }
    clock.pass_by(hours=25)
    assert api.get(f"/agents/{agent_id}")["performance_24h"] == nothing


def test_introspection_names_what_is_stuck(
    api: Api, publish: Publish, platform: Platform, clock: Clock
) -> None:
    row = publish(Status.QUEUED)
    clock.pass_by(hours=2)
    anyio.run(sweeps.tell_of_stuck, platform)
    found = api.post("/actions/agent_introspect", {})
    assert found["pending_observations"] == 1
    assert [each["publication_id"] for each in found["observations"]] == [row]
    assert "no worker took it" in found["observations"][0]["hint"]


def test_a_platform_that_fails_stops_no_other(
    api: Api, publish: Publish, platform: Platform, platform_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from platform_server.manager import tick as ticking

    router = api.post("/node_platforms", {"node_platform": {"name": "router"}})["id"]
    of_router = Publish(platform, UUID(router), publish.clock, count=100)
    publish(), publish(), of_router(), of_router()
    real = ticking.decide

    def decide(session: Any, platform_id: UUID, schedule: Any, at: Any) -> None:
        if str(platform_id) != router:
            raise OSError("disk is gone")
        real(session, platform_id, schedule, at)

    monkeypatch.setattr(ticking, "decide", decide)
    with pytest.raises(OSError, match="disk is gone"):
        anyio.run(tick, platform)
    assert _pending(api)["node_platform_id"] == router
