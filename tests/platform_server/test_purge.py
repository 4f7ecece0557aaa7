"""Purging: what is retired for a week goes from its registry, with nothing of any other image; killed at any
request, the next sweep ends the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

import anyio
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from platform_server import defaults, purge, sweeps
from platform_server.errors import Invalid
from platform_server.permissions import EVERYTHING, Caller
from platform_server.states import Status, Transition, move
from platform_server.tables import Instance, NodePlatform, Publication, Purge
from tests.platform_server.clock import Clock
from tests.platform_server.fleet import SWEPT, Fleet
from tests.platform_server.images import REPOSITORY
from tests.platform_server.made import Made
from tests.platform_server.rows import node_platform
from tests.platform_server.verifying import POLICY, Trial
from tests.supply_chain.registry_server import Fault, Planned, RegistryServer

BLOCKED = "system.disk_image_purge_blocked"


def _after(server: RegistryServer, count: int, method: str, path: str) -> bool:
    """Whether that many requests have been before this one."""
    return server.count > count


@pytest.fixture
def fleet(trial: Trial, clock: Clock) -> Fleet:
    return Fleet(trial, clock)


def test_after_a_week_an_image_goes_and_others_stay_whole(fleet: Fleet) -> None:
    fleet.sweep()
    assert fleet.status() == ["retired", "retired", "published"]
    fleet.clock.pass_by(days=6)
    assert fleet.sweep().purged == 0
    assert all(fleet.is_whole(number) for number in range(3))
    fleet.clock.pass_by(days=2)
    assert fleet.sweep() == sweeps.Swept(retired=0, stuck_retired=0, purged=2, blocked=0)
    assert fleet.status() == ["purged", "purged", "published"]
    assert [fleet.is_gone(0), fleet.is_gone(1), fleet.is_whole(2)] == [True, True, True]
    told = [each for each in fleet.told(SWEPT) if each["action"] == "purged"]
    assert [each["publication_id"] for each in told] == [str(each) for each in fleet.ids[:2]]
    assert {each["image"] for each in told} == {"deleted"}
    assert all(fleet.trial.row(each).purged_at is not None for each in fleet.ids[:2])
    assert fleet.trial.read(lambda on: on.scalars(select(Purge)).all()) == []
    assert fleet.sweep() == sweeps.Swept(0, 0, 0, 0)


def test_the_default_is_never_purged(fleet: Fleet) -> None:
    """Not even where a mistake retired it."""

    def retire(session: Session) -> None:
        move(session.get_one(Publication, fleet.ids[2]), Transition.RETIRE, fleet.clock())

    fleet.trial.write(retire)
    fleet.clock.pass_by(days=30)
    fleet.sweep()
    assert fleet.status()[2] == "retired"
    assert fleet.is_whole(2)


def test_what_a_node_boots_is_never_purged(fleet: Fleet) -> None:
    def boot(session: Session) -> None:
        row = session.get_one(Publication, fleet.ids[0])
        session.add(
            Instance(
                account_id=row.account_id,
                node_platform_id=row.node_platform_id,
                publication_id=row.id,
                name="node",
                created_at=fleet.clock(),
            )
        )

    fleet.sweep()
    assert fleet.status()[0] == "retired"
    fleet.trial.write(boot)
    fleet.clock.pass_by(days=30)
    assert fleet.sweep().purged == 1
    assert fleet.status() == ["retired", "purged", "published"]
    assert fleet.is_whole(0)


def test_a_registry_that_forbids_deleting_blocks_the_purge_until_it_allows_it(fleet: Fleet) -> None:
    server = fleet.trial.images.server
    server.deletes = set()
    assert fleet.later() == sweeps.Swept(0, 0, 0, blocked=2)
    assert fleet.status() == ["retired", "retired", "published"]
    row = fleet.trial.row(fleet.ids[0])
    assert row.purge_blocked is not None
    assert "405" in row.purge_blocked
    # nothing is deleted, so it can still come back
    assert row.purge_started_at is None
    events = fleet.told(BLOCKED)
    assert [each["publication_id"] for each in events] == [str(each) for each in fleet.ids[:2]]
    assert "405" in events[0]["error_message"]
    fleet.sweep()
    assert len(fleet.told(BLOCKED)) == 2
    server.deletes = {"manifests", "blobs"}
    assert fleet.sweep().purged == 2
    assert fleet.trial.row(fleet.ids[0]).purge_blocked is None
    assert fleet.is_gone(0)


def test_a_blocked_one_can_come_back_and_one_half_deleted_can_not(fleet: Fleet) -> None:
    server = fleet.trial.images.server
    server.deletes = set()
    fleet.later()
    caller = Caller(fleet.trial.node_platform.account_id, "admin", [EVERYTHING])

    def rollback(number: int) -> Callable[[Session], object]:
        return lambda on: defaults.rollback(
            on, caller, fleet.trial.node_platform.id, fleet.ids[number], fleet.clock()
        )

    fleet.trial.write(rollback(0))
    assert fleet.status() == ["published", "retired", "retired"]
    server.deletes = {"manifests"}
    server.faults = [Planned(Fault.ERROR, where=lambda method, path: "/tags/" in path, times=99)]
    fleet.sweep()
    server.faults = []
    assert fleet.trial.row(fleet.ids[1]).purge_started_at is not None
    with pytest.raises(Invalid, match="being deleted"):
        fleet.trial.write(rollback(1))


def test_a_registry_that_collects_blobs_itself_is_enough(fleet: Fleet) -> None:
    fleet.trial.images.server.deletes = {"manifests"}
    assert fleet.later().purged == 2
    (first, _) = [each for each in fleet.told(SWEPT) if each["action"] == "purged"]
    assert first["image"] == "deleted; its registry collects the blobs itself"


def test_a_registry_that_is_down_or_no_longer_trusted_blocks_too(fleet: Fleet) -> None:
    fleet.sweep()
    fleet.clock.pass_by(days=8)
    fleet.trial.images.server.faults = [Planned(Fault.BUSY, times=999)]
    assert fleet.sweep().blocked == 2
    fleet.trial.images.server.faults = []
    fleet.trial.change(trusted_registries=[])
    assert fleet.sweep().blocked == 2
    blocked = fleet.trial.row(fleet.ids[0]).purge_blocked
    assert blocked is not None
    assert "expected one of" in blocked
    assert len(fleet.told(BLOCKED)) == 4
    assert fleet.is_whole(0)


def test_an_image_that_another_platform_has_stays(fleet: Fleet) -> None:
    """Also when that is another account's; the last one takes the image along."""
    trial = fleet.trial

    def twin(session: Session) -> UUID:
        row = node_platform(
            session,
            fleet.clock(),
            "twin",
            trusted_registries=[trial.images.server.host],
            disk_image_retention_count=1,
            **POLICY,
        )
        return row.id

    twin_id = trial.write(twin)
    other = trial.verify(trial.images.ref("first"), node_platform_id=twin_id)
    assert other.status is Status.PUBLISHED
    assert fleet.later().purged == 2
    assert fleet.is_whole(0)
    assert fleet.is_gone(1)
    image = {
        each["publication_id"]: each["image"] for each in fleet.told(SWEPT) if each["action"] == "purged"
    }
    assert image[str(fleet.ids[0])] == "kept: another platform has it"

    def retire(session: Session) -> None:
        session.get_one(NodePlatform, twin_id).default_publication_id = None
        move(session.get_one(Publication, other.id), Transition.RETIRE, fleet.clock())

    trial.write(retire)
    fleet.clock.pass_by(days=8)
    anyio.run(sweeps.sweep, trial.platform, twin_id, timedelta(days=7))
    assert trial.row(other.id).status is Status.PURGED
    assert fleet.is_gone(0)


def test_an_image_that_is_about_to_be_verified_waits(fleet: Fleet) -> None:
    def twin(session: Session) -> UUID:
        return node_platform(session, fleet.clock(), "twin").id

    twin_id = fleet.trial.write(twin)
    digest = fleet.signed[0].image.digest
    fleet.trial.report(fleet.trial.images.ref(digest), node_platform_id=twin_id, oci_digest=digest)
    assert fleet.later() == sweeps.Swept(0, 0, purged=1, blocked=1)
    assert fleet.status()[0] == "retired"
    assert fleet.trial.row(fleet.ids[0]).purge_started_at is None
    assert fleet.is_whole(0)


def test_an_image_that_is_being_deleted_is_not_published_anew(fleet: Fleet) -> None:
    """It is verified again later, and by then it is not there."""
    trial = fleet.trial

    def begun_and_twin(session: Session) -> UUID:
        session.execute(
            update(Publication)
            .where(Publication.id == fleet.ids[0])
            .values(purge_started_at=fleet.clock(), status=Status.RETIRED)
        )
        row = node_platform(
            session, fleet.clock(), "twin", trusted_registries=[trial.images.server.host], **POLICY
        )
        return row.id

    twin_id = trial.write(begun_and_twin)
    row = trial.verify(trial.images.ref("first"), node_platform_id=twin_id)
    assert row.status is Status.VERIFYING
    assert trial.read(lambda on: purge.is_going(on, on.get_one(Publication, row.id)))


@pytest.mark.parametrize("referrers_api", [True, False])
def test_cut_off_at_any_request_the_next_sweep_ends_the_same(
    fleet: Fleet, made: Made, tmp_path: Path, referrers_api: bool
) -> None:
    """Each request of the first sweep is in its turn the first one of which nobody hears the answer."""
    server = fleet.trial.images.server
    fleet.trial.change(disk_image_retention_count=2)
    if not referrers_api:
        server.referrers_api = False
        fleet.tag_referrers()
    fleet.sweep()
    fleet.clock.pass_by(days=8)
    filled = deepcopy(fleet.repo)
    platform = fleet.trial.platform
    platform.database.close()
    saved = made.copied(tmp_path / "saved")
    for at in range(0, 200, made.step):
        server.repos[REPOSITORY] = deepcopy(filled)
        platform.database.close()
        _restore(saved, made)
        server.faults = [
            Planned(Fault.CUT_AFTER, where=partial(_after, server, server.count + at), times=9999)
        ]
        first = fleet.sweep()
        server.faults = []
        through = first.blocked == 0
        if not through:
            assert fleet.sweep().blocked == 0
        assert fleet.status() == ["purged", "published", "published"], f"request {at}"
        assert fleet.is_gone(0), f"request {at}"
        assert fleet.is_whole(1), f"request {at}"
        assert fleet.is_whole(2), f"request {at}"
        purged = [each["publication_id"] for each in fleet.told(SWEPT) if each["action"] == "purged"]
        assert purged == [str(fleet.ids[0])]
        if through:
            break
    assert 20 < at < 199


def _restore(saved: Made, made: Made) -> None:
    """Make one platform's database what the other one's is."""
    if saved.elsewhere is not None and made.elsewhere is not None:
        made.elsewhere.server.copy(saved.elsewhere.name, made.elsewhere.name)
        return
    source, target = saved.folder / "platform.db", made.folder / "platform.db"
    with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target)) as written:
        read.backup(written)
