"""What new nodes boot: set and rolled back, by REST and by the operators' actions."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from platform_server.state_folder import Platform
from platform_server.states import Status, Transition, move
from platform_server.tables import Publication
from tests.platform_server.api import Api
from tests.platform_server.clock import Clock
from tests.platform_server.published import Publish


@pytest.fixture
def path(platform_id: str) -> str:
    return f"/node_platforms/{platform_id}"


def _default(api: Api, path: str) -> str:
    found: str = api.get(path)["node_platform"]["default_publication_id"]
    return found


def _status(api: Api, path: str, publication_id: str) -> str:
    row = api.get(f"{path}/disk_image_publications/{publication_id}")["disk_image_publication"]
    found: str = row["status"]
    return found


def _events(api: Api, kind: str) -> list[dict[str, Any]]:
    return [event["payload"] for event in api.get("/events", kind_prefix=kind)["events"]]


def test_a_published_image_becomes_the_default(
    api: Api, path: str, platform_id: str, publish: Publish
) -> None:
    first, second = publish(), publish()
    answer = api.post(f"{path}/disk_image_publications/{second}/set_default")
    assert answer == {
        "set_default": True,
        "publication_id": second,
        "node_platform_id": platform_id,
        "oci_ref": f"registry.example/os/debian@sha256:{2:064x}",
        "oci_digest": f"sha256:{2:064x}",
        "git_sha": f"{2:040x}",
        "prior_publication_id": first,
    }
    assert _default(api, path) == second
    listed = api.post("/actions/system_list_disk_image_publications", {"node_platform_id": platform_id})
    assert [(row["id"], row["is_default"]) for row in listed["publications"]] == [
        (second, True),
        (first, False),
    ]
    (event,) = _events(api, "system.disk_image_default_set")
    assert (event["publication_id"], event["prior_publication_id"]) == (second, first)
    assert _status(api, path, first) == "published"


def test_set_default_again_changes_nothing(api: Api, path: str, publish: Publish) -> None:
    first, second = publish(), publish()
    body = {"publication_id": second}
    api.post("/actions/system_set_default_disk_image_publication", body)
    again = api.post("/actions/system_set_default_disk_image_publication", body)
    assert (again["publication_id"], again["prior_publication_id"]) == (second, None)
    assert len(_events(api, "system.disk_image_default_set")) == 1
    assert first != second


@pytest.mark.parametrize("status", [Status.QUEUED, Status.FAILED, Status.RETIRED, Status.PURGED])
def test_only_what_is_published_can_become_the_default(
    api: Api, path: str, publish: Publish, status: Status
) -> None:
    first, other = publish(), publish(status)
    error = api.error(422, "POST", f"{path}/disk_image_publications/{other}/set_default")
    assert "only 'published'" in error
    assert status in error
    assert _default(api, path) == first


def test_set_default_knows_its_account_and_its_platform_alone(
    api: Api, other: Api, path: str, publish: Publish
) -> None:
    first = publish()
    router = api.post("/node_platforms", {"node_platform": {"name": "router"}})["id"]
    action = "/actions/system_set_default_disk_image_publication"
    other.error(404, "POST", action, json={"publication_id": first})
    other.error(404, "POST", f"{path}/disk_image_publications/{first}/set_default")
    api.error(404, "POST", action, json={"publication_id": first, "node_platform_id": router})
    api.error(404, "POST", f"/node_platforms/{router}/disk_image_publications/{first}/set_default")


def test_rollback_goes_back_step_by_step_and_forward_by_name(
    api: Api, path: str, platform_id: str, publish: Publish
) -> None:
    first, second, third = publish(), publish(), publish()
    api.post(f"{path}/disk_image_publications/{third}/set_default")
    answer = api.post(f"{path}/rollback_disk_image")
    assert answer["rolled_back"] is True
    assert answer["platform_id"] == answer["node_platform_id"] == platform_id
    assert answer["activated_publication_id"] == answer["publication_id"] == second
    assert answer["prior_publication_id"] == third
    assert [_status(api, path, each) for each in (first, second, third)] == [
        "published",
        "published",
        "retired",
    ]
    action = "/actions/system_rollback_disk_image"
    assert api.post(action, {"node_platform_id": platform_id})["activated_publication_id"] == first
    assert _default(api, path) == first
    api.error(409, "POST", f"{path}/rollback_disk_image", json={})
    forward = api.post(action, {"node_platform_id": platform_id, "publication_id": third})
    assert forward["prior_publication_id"] == first
    assert _status(api, path, third) == "published"
    assert [
        event["activated_publication_id"] for event in _events(api, "system.disk_image_rolled_back")
    ] == [
        third,
        first,
        second,
    ]


def test_a_retired_target_is_published_again(api: Api, path: str, publish: Publish) -> None:
    """Retired, the next purge would delete what new nodes boot."""
    old, now = publish(Status.RETIRED, purge_blocked="405"), publish()
    api.post(f"{path}/disk_image_publications/{now}/set_default")
    assert api.post(f"{path}/rollback_disk_image")["activated_publication_id"] == old
    row = api.get(f"{path}/disk_image_publications/{old}")["disk_image_publication"]
    assert (row["status"], row["is_default"], row["purge_blocked"]) == ("published", True, None)
    assert row["reactivated_at"] is not None
    assert row["published_at"] < row["reactivated_at"]


def test_rollback_to_the_default_changes_nothing(api: Api, path: str, publish: Publish) -> None:
    first = publish()
    answer = api.post(f"{path}/rollback_disk_image", {"publication_id": first})
    assert (answer["activated_publication_id"], answer["prior_publication_id"]) == (first, None)
    assert _events(api, "system.disk_image_rolled_back") == []


def test_rollback_takes_nothing_that_is_no_good_image(
    api: Api, path: str, publish: Publish, platform: Platform, clock: Clock
) -> None:
    """A failed, queued, purged or half-purged row, and one that was retired without being published."""
    default = publish()

    def retire(publication_id: str) -> None:
        def work(session: Any) -> None:
            move(session.get_one(Publication, UUID(publication_id)), Transition.RETIRE, clock())

        platform.database.write_now(work)

    never = publish(Status.FAILED)
    retire(never)
    refused = {
        "failed": publish(Status.FAILED),
        "queued": publish(Status.QUEUED),
        "purged": publish(Status.PURGED),
        "never published": never,
        "being deleted": publish(Status.RETIRED, purge_started_at=clock()),
    }
    for why, publication_id in refused.items():
        error = api.error(
            422, "POST", f"{path}/rollback_disk_image", json={"publication_id": publication_id}
        )
        assert why in error
    assert _default(api, path) == default
    assert _events(api, "system.disk_image_rolled_back") == []


def test_rollback_without_a_target_passes_over_what_is_no_good_image(
    api: Api, path: str, publish: Publish, clock: Clock
) -> None:
    good = publish()
    publish(Status.PURGED)
    publish(Status.FAILED)
    publish(Status.RETIRED, purge_started_at=clock())
    default = publish()
    publish()
    api.post(f"{path}/disk_image_publications/{default}/set_default")
    assert api.post(f"{path}/rollback_disk_image")["activated_publication_id"] == good


def test_a_platform_without_images_has_nothing_to_go_back_to(api: Api, path: str) -> None:
    assert "no default" in api.error(409, "POST", f"{path}/rollback_disk_image")


def test_rollback_knows_its_account_and_its_platform_alone(
    api: Api, other: Api, path: str, platform_id: str, publish: Publish
) -> None:
    first = publish()
    router = api.post("/node_platforms", {"node_platform": {"name": "router"}})["id"]
    other.error(404, "POST", f"{path}/rollback_disk_image")
    other.error(404, "POST", "/actions/system_rollback_disk_image", json={"node_platform_id": platform_id})
    body = {"publication_id": first}
    api.error(404, "POST", f"/node_platforms/{router}/rollback_disk_image", json=body)
    unknown = {"publication_id": "00000000-0000-7000-8000-000000000000"}
    api.error(404, "POST", f"{path}/rollback_disk_image", json=unknown)


@pytest.mark.parametrize(
    ("action", "body", "field"),
    [
        ("system_set_default_disk_image_publication", {}, "publication_id"),
        ("system_set_default_disk_image_publication", {"publication_id": "1"}, "publication_id"),
        ("system_set_default_disk_image_publication", {"publication_id": 1}, "publication_id"),
        ("system_rollback_disk_image", {"publication_id": None}, "node_platform_id"),
        ("system_set_disk_image_retention", {"retention_count": 5}, "node_platform_id"),
        ("system_list_disk_image_publications", {"limit": 0}, "limit"),
        ("system_list_disk_image_publications", {"limit": "5"}, "limit"),
        ("system_list_disk_image_publications", {"status": "gone"}, "status"),
        ("system_list_disk_image_publications", {"account_id": "x"}, "account_id"),
    ],
)
def test_an_action_says_which_parameter_is_wrong(
    api: Api, action: str, body: dict[str, Any], field: str
) -> None:
    assert field in api.error(422, "POST", f"/actions/{action}", json=body)


def test_publications_are_listed_by_status_and_for_the_account_alone(
    api: Api, other: Api, publish: Publish
) -> None:
    first, queued = publish(), publish(Status.QUEUED)
    action = "/actions/system_list_disk_image_publications"
    assert [row["id"] for row in api.post(action, {})["publications"]] == [queued, first]
    found = api.post(action, {"status": "published", "limit": 1})
    assert [row["id"] for row in found["publications"]] == [first]
    assert found["count"] == 1
    assert found["publications"][0]["cosign_verified"] is True
    assert other.post(action, {}) == {"publications": [], "count": 0}
