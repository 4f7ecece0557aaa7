"""Retention in the database: what is retired, when, and what never is; the stuck are told of."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import anyio
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import retention, stuck, sweeps
from platform_server.node_platforms import hold
from platform_server.queue import LeaseLost, claim, enqueue, finish
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Instance, InstanceStatus, Job, Publication
from tests.platform_server.api import Api
from tests.platform_server.clock import Clock
from tests.platform_server.published import Publish

SET = "/actions/system_set_disk_image_retention"


@pytest.fixture
def path(platform_id: str) -> str:
    return f"/node_platforms/{platform_id}"


def _status(api: Api, path: str) -> list[str]:
    """States, the oldest publication first."""
    rows = api.get(f"{path}/disk_image_publications")["disk_image_publications"]
    return [row["status"] for row in rows[::-1]]


def _boot(platform: Platform, publication_id: str) -> UUID:
    """A node that boots it."""

    def work(session: Session) -> UUID:
        row = session.get_one(Publication, UUID(publication_id))
        node = Instance(
            account_id=row.account_id,
            node_platform_id=row.node_platform_id,
            publication_id=row.id,
            name="node",
            created_at=row.created_at,
        )
        session.add(node)
        session.flush()
        return node.id

    return platform.database.write_now(work)


def _terminate(platform: Platform, instance_id: UUID) -> None:
    def work(session: Session) -> None:
        session.get_one(Instance, instance_id).status = InstanceStatus.TERMINATED

    platform.database.write_now(work)


def _sweep(platform: Platform, platform_id: str, **options: Any) -> sweeps.Swept:
    async def run() -> sweeps.Swept:
        return await sweeps.sweep(platform, UUID(platform_id), platform.settings.schedule.grace, **options)

    return anyio.run(run)


def test_beyond_the_count_the_oldest_are_retired_with_an_event_each(
    api: Api, path: str, platform_id: str, publish: Publish
) -> None:
    ids = [publish() for _ in range(5)]
    answer = api.post(SET, {"node_platform_id": platform_id, "retention_count": 2})
    assert answer == {
        "updated": True,
        "node_platform_id": platform_id,
        "disk_image_retention_count": 2,
    }
    # the first is the default
    assert _status(api, path) == ["published", "retired", "retired", "published", "published"]
    events = api.get("/events", kind_prefix="system.disk_image_retention_swept")["events"]
    told = [event["payload"] for event in events[::-1]]
    assert [(each["publication_id"], each["action"]) for each in told] == [
        (ids[1], "retired"),
        (ids[2], "retired"),
    ]
    assert all({"node_platform_id", "oci_ref", "sha256", "platform_name"} <= each.keys() for each in told)
    assert api.get(path)["node_platform"]["disk_image_retention_count"] == 2


def test_the_count_in_a_platforms_policy_does_the_same(api: Api, path: str, publish: Publish) -> None:
    for _ in range(3):
        publish()
    api.patch(path, {"node_platform": {"disk_image_retention_count": 1}})
    assert _status(api, path) == ["published", "retired", "published"]


@pytest.mark.parametrize("count", [0, -1, 51, 1.5, "5", True, None])
def test_the_count_is_1_to_50(api: Api, path: str, platform_id: str, count: object) -> None:
    body = {"node_platform_id": platform_id, "retention_count": count}
    assert "retention_count" in api.error(422, "POST", SET, json=body)
    assert api.get(path)["node_platform"]["disk_image_retention_count"] == 3


def test_a_count_below_1_is_named_as_the_reference_does(api: Api, platform_id: str) -> None:
    body = {"node_platform_id": platform_id, "retention_count": 0}
    assert "must be ≥1" in api.error(422, "POST", SET, json=body)


def test_another_accounts_retention_is_not_there(api: Api, other: Api, platform_id: str) -> None:
    other.error(404, "POST", SET, json={"node_platform_id": platform_id, "retention_count": 5})


def test_a_higher_count_brings_nothing_back(api: Api, path: str, platform_id: str, publish: Publish) -> None:
    for _ in range(3):
        publish()
    for count in (1, 50):
        api.post(SET, {"node_platform_id": platform_id, "retention_count": count})
    assert _status(api, path) == ["published", "retired", "published"]


def test_what_a_node_boots_stays_until_it_is_terminated(
    api: Api, path: str, platform: Platform, platform_id: str, publish: Publish
) -> None:
    ids = [publish() for _ in range(4)]
    node = _boot(platform, ids[1])
    api.post(SET, {"node_platform_id": platform_id, "retention_count": 1})
    assert _status(api, path) == ["published", "published", "retired", "published"]
    _terminate(platform, node)
    assert _sweep(platform, platform_id).retired == 1
    assert _status(api, path) == ["published", "retired", "retired", "published"]


def test_one_that_was_rolled_back_to_is_as_new_as_that(
    api: Api, path: str, platform_id: str, publish: Publish, clock: Clock
) -> None:
    _, second, third = publish(), publish(Status.RETIRED), publish()
    clock.pass_by(minutes=1)
    api.post(f"{path}/rollback_disk_image", {"publication_id": second})
    assert _status(api, path) == ["retired", "published", "published"]
    api.post(f"{path}/disk_image_publications/{third}/set_default")
    api.post(SET, {"node_platform_id": platform_id, "retention_count": 1})
    # the second came back last; the third is the default
    assert _status(api, path) == ["retired", "published", "published"]


def test_a_dry_run_counts_and_changes_nothing(
    api: Api, path: str, platform: Platform, platform_id: str, publish: Publish, clock: Clock
) -> None:
    publish(Status.FAILED)
    publish(Status.RETIRED)
    clock.pass_by(days=8)
    for _ in range(5):
        publish()
    before = _status(api, path)
    found = _sweep(platform, platform_id, dry_run=True)
    assert found == sweeps.Swept(retired=1, stuck_retired=1, purged=1, blocked=0)
    assert _status(api, path) == before


def test_what_failed_or_verifies_for_a_week_is_retired_and_its_worker_told(
    api: Api, path: str, platform: Platform, platform_id: str, publish: Publish, clock: Clock
) -> None:
    publish(Status.FAILED)
    verifying = UUID(publish(Status.VERIFYING))
    platform.database.write_now(lambda on: enqueue(on, on.get_one(Publication, verifying), clock()))
    lease = platform.database.write_now(lambda on: claim(on, platform.settings.schedule, clock()))
    assert lease is not None
    clock.pass_by(days=6)
    publish(Status.FAILED)
    publish(Status.QUEUED)
    assert _sweep(platform, platform_id).stuck_retired == 0
    clock.pass_by(days=2)
    assert _sweep(platform, platform_id).stuck_retired == 2
    assert _status(api, path) == ["retired", "retired", "failed", "queued"]
    assert platform.database.read_now(lambda on: on.scalars(select(Job)).all()) == []
    with pytest.raises(LeaseLost):
        platform.database.write_now(lambda on: finish(on, lease))


def test_a_retired_row_that_never_was_published_is_purged_without_a_registry(
    api: Api, path: str, platform: Platform, platform_id: str, publish: Publish, clock: Clock
) -> None:
    """Its reference may name a registry that nobody trusts."""
    publish(Status.FAILED, oci_ref="evil.example/x:1")
    clock.pass_by(days=8)
    _sweep(platform, platform_id)
    assert _status(api, path) == ["retired"]
    clock.pass_by(days=8)
    assert _sweep(platform, platform_id).purged == 1
    assert _status(api, path) == ["purged"]
    last = api.get("/events", limit=1)["events"][0]["payload"]
    assert (last["action"], last["image"]) == ("purged", "left alone: it was never taken")


def test_a_sweep_over_rest_is_of_one_platform_or_of_the_account(
    api: Api, other: Api, platform_id: str, publish: Publish, clock: Clock
) -> None:
    publish(Status.FAILED)
    clock.pass_by(days=8)
    for _ in range(4):
        publish()
    route = "/worker_api/disk_image_publications/sweep_retention"
    counts = {"retired": 0, "stuck_retired": 1, "purged": 0, "blocked": 0}
    dry = api.post(route, {"platform_id": platform_id, "dry_run": True})
    assert dry == {**counts, "platform_id": platform_id, "dry_run": True}
    one = api.post(route, {"platform_id": platform_id})
    assert one == {**counts, "platform_id": platform_id, "dry_run": False}
    everything = api.post(route, {})
    assert list(everything["per_platform"]) == [platform_id]
    assert everything["per_platform"][platform_id] == {**counts, "stuck_retired": 0}
    other.error(404, "POST", route, json={"platform_id": platform_id})
    assert other.post(route, {})["per_platform"] == {}
    for days in (0, 6, "8"):
        assert "grace_days" in api.error(422, "POST", route, json={"grace_days": days})


@pytest.mark.parametrize(
    ("status", "hours"), [(Status.QUEUED, 1), (Status.VERIFYING, 1), (Status.AWAITING_UPLOAD, 2)]
)
def test_a_row_without_progress_is_told_of_once_and_marked(
    api: Api,
    path: str,
    platform: Platform,
    publish: Publish,
    clock: Clock,
    status: Status,
    hours: int,
) -> None:
    publication_id = publish(status)
    publish(Status.FAILED)
    publish()

    def report() -> int:
        return anyio.run(sweeps.tell_of_stuck, platform)

    clock.pass_by(minutes=hours * 60 - 10)
    assert report() == 0
    clock.pass_by(minutes=10)
    assert [report(), report()] == [1, 0]
    (event,) = api.get("/events", kind_prefix="system.disk_image_publication_stuck")["events"]
    assert event["severity"] == "high"
    assert event["payload"]["publication_id"] == publication_id
    assert event["payload"]["status"] == status
    assert event["payload"]["hint"] == stuck.ADVICE[status]
    rows = api.get(f"{path}/disk_image_publications")["disk_image_publications"]
    assert {row["id"]: row["stuck"] for row in rows if row["stuck"]} == {
        publication_id: stuck.ADVICE[status]
    }


def test_one_that_starts_anew_is_not_stuck_until_it_is_again(
    platform: Platform, publish: Publish, clock: Clock
) -> None:
    publication_id = UUID(publish(Status.VERIFYING))

    def report() -> int:
        return anyio.run(sweeps.tell_of_stuck, platform)

    def advice() -> str | None:
        return platform.database.read_now(lambda on: stuck.advice(on.get_one(Publication, publication_id)))

    clock.pass_by(hours=2)
    assert report() == 1
    assert advice()

    def again(session: Session) -> None:
        session.get_one(Publication, publication_id).verifying_at = clock.pass_by(minutes=1)

    platform.database.write_now(again)
    assert advice() is None
    clock.pass_by(hours=2)
    assert report() == 1


def test_publishing_retires_in_its_own_transaction(
    platform: Platform, platform_id: str, publish: Publish, clock: Clock
) -> None:
    for _ in range(5):
        publish()

    def work(session: Session) -> int:
        return retention.retire_surplus(session, hold(session, UUID(platform_id)), clock())

    assert [platform.database.write_now(work) for _ in range(2)] == [1, 0]
