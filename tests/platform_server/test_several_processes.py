"""What several processes do at once to one database is done as if one had come after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any
from uuid import UUID

import anyio
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import defaults, node_platforms, sweeps, upload_files, webhooks
from platform_server.accounts import user_token
from platform_server.errors import Conflict, Invalid, Refused
from platform_server.events import Kind
from platform_server.permissions import EVERYTHING, Caller
from platform_server.settings import Settings
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Account, Event, NodePlatform, User, Webhook, WebhookStatus
from tests.platform_server.clock import Clock
from tests.platform_server.fleet import SWEPT, Fleet
from tests.platform_server.invariants import broken
from tests.platform_server.made import Made
from tests.platform_server.published import Publish
from tests.platform_server.rows import first_account_id
from tests.platform_server.verifying import Trial

AT_ONCE = 6


@pytest.fixture
def processes(made: Made, settings: Settings, clock: Clock) -> Iterator[Sequence[Platform]]:
    """The platform as each process has it: they share the database and the folder."""
    opened = [made.open(settings, clock) for _ in range(AT_ONCE)]
    yield opened
    for each in opened:
        each.database.close()


def _at_once(processes: Sequence[Platform], work: Callable[[Platform, int], Any]) -> list[Any]:
    """What each process got, or what it was refused with."""
    barrier = Barrier(len(processes))

    def one(number: int) -> Any:
        barrier.wait(30)
        try:
            return work(processes[number], number)
        except Refused as error:
            return error

    with ThreadPoolExecutor(len(processes)) as threads:
        return list(threads.map(one, range(len(processes))))


def _write(work: Callable[[Session, int], Any]) -> Callable[[Platform, int], Any]:
    return lambda platform, number: platform.database.write_now(lambda on: work(on, number))


@pytest.fixture
def caller(platform: Platform) -> Caller:
    account = platform.database.read_now(first_account_id)
    return Caller(account, "admin", frozenset({EVERYTHING}))


def test_a_name_is_given_once(processes: Sequence[Platform], caller: Caller, clock: Clock) -> None:
    """The others are told that it is taken, as if they had come later."""
    sealer = processes[0].sealer
    for work in (
        lambda on, _: webhooks.create(on, caller, sealer, "pipeline", clock()),
        lambda on, _: node_platforms.create(on, caller, {"name": "debian"}, clock()),
    ):
        answers = _at_once(processes, _write(work))
        refused = [each for each in answers if isinstance(each, Invalid)]
        assert len(refused) == AT_ONCE - 1
        assert all("no " in each.what for each in refused)


def test_an_account_and_its_user_are_made_once(processes: Sequence[Platform], clock: Clock) -> None:
    tokens = _at_once(processes, _write(lambda on, _: user_token(on, "new", "someone", ["*"], clock())))
    assert len(set(tokens)) == AT_ONCE
    names = processes[0].database.read_now(
        lambda on: [*on.scalars(select(Account.name)), *on.scalars(select(User.name))]
    )
    assert (names.count("new"), names.count("someone")) == (1, 1)


def test_a_revoked_webhook_stays_so_whoever_changes_it_at_the_same_time(
    processes: Sequence[Platform], caller: Caller, clock: Clock
) -> None:
    sealer = processes[0].sealer
    for number in range(5):
        hook_id = _webhook(processes[0], caller, f"pipeline {number}")

        def change(on: Session, number: int, hook_id: UUID = hook_id) -> object:
            if number == 0:
                return webhooks.revoke(on, caller, hook_id, clock())
            if number % 2:
                return webhooks.rotate(on, caller, sealer, hook_id, timedelta(hours=1), clock())
            return webhooks.change(on, caller, hook_id, clock(), status=WebhookStatus.ACTIVE)

        answers = _at_once(processes, _write(change))
        assert all(isinstance(each, Conflict) for each in answers if isinstance(each, Refused))
    rows = processes[0].database.read_now(lambda on: on.scalars(select(Webhook)).all())
    assert len(rows) == 5
    for row in rows:
        assert (row.status, row.secret, row.previous_secret) == (WebhookStatus.REVOKED, b"", None)


def _webhook(platform: Platform, caller: Caller, label: str) -> UUID:
    row, _ = platform.database.write_now(
        lambda on: webhooks.create(on, caller, platform.sealer, label, platform.clock())
    )
    return row.id


def test_what_is_stuck_is_told_once(processes: Sequence[Platform], publish: Publish, clock: Clock) -> None:
    ids = {publish(Status.VERIFYING) for _ in range(5)}
    clock.pass_by(hours=2)
    counts = _at_once(processes, lambda platform, _: anyio.run(sweeps.tell_of_stuck, platform))
    assert sum(counts) == len(ids)
    assert _told(processes[0], Kind.STUCK) == dict.fromkeys(ids, 1)


def test_defaults_set_at_once_follow_each_other(
    processes: Sequence[Platform], publish: Publish, caller: Caller, clock: Clock
) -> None:
    """Each event names the default that it replaced: together they are one chain, which ends at the last."""
    ids = [UUID(publish()) for _ in range(AT_ONCE + 1)]
    _at_once(
        processes,
        _write(lambda on, number: defaults.set_default(on, caller, ids[number + 1], None, clock())),
    )
    default, payloads = processes[0].database.read_now(
        lambda on: (
            on.scalars(select(NodePlatform.default_publication_id)).one(),
            on.scalars(select(Event.payload).where(Event.kind == Kind.DEFAULT_SET)).all(),
        )
    )
    after = {each["prior_publication_id"]: each["publication_id"] for each in payloads}
    assert len(after) == len(payloads) == AT_ONCE
    chain = str(ids[0])
    for _ in range(AT_ONCE):
        chain = after[chain]
    assert chain == str(default)


def test_sweeps_at_once_purge_once(trial: Trial, processes: Sequence[Platform], clock: Clock) -> None:
    fleet = Fleet(trial, clock)
    _at_once(processes, lambda platform, _: anyio.run(sweeps.sweep_everything, platform))
    assert Counter(fleet.status()) == {"retired": 2, "published": 1}
    fleet.clock.pass_by(days=8)
    _at_once(processes, lambda platform, _: anyio.run(sweeps.sweep_everything, platform))
    # one that found another's request half done is blocked, and goes on with the next sweep
    anyio.run(sweeps.sweep_everything, processes[0])
    assert fleet.status() == ["purged", "purged", "published"]
    assert fleet.is_whole(2)
    told = Counter((each["publication_id"], each["action"]) for each in fleet.told(SWEPT))
    assert set(told.values()) == {1}
    assert [line for line in broken(processes[0]) if not line.startswith(("secrets", "deliveries"))] == []


def test_abandoned_uploads_fail_once(processes: Sequence[Platform], publish: Publish, clock: Clock) -> None:
    ids = {publish(Status.AWAITING_UPLOAD) for _ in range(5)}
    clock.pass_by(hours=2)
    _at_once(processes, lambda platform, _: anyio.run(upload_files.sweep, platform))
    assert _told(processes[0], Kind.PUBLISH_FAILED) == dict.fromkeys(ids, 1)


def _told(platform: Platform, kind: Kind) -> Counter[str]:
    payloads = platform.database.read_now(
        lambda on: on.scalars(select(Event.payload).where(Event.kind == kind)).all()
    )
    return Counter(each["publication_id"] for each in payloads)
