"""Units of work: one transaction each, in a row on SQLite, run again when the database asks."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from platform_server.database import GROUP, _Waiting
from platform_server.state_folder import Platform
from platform_server.tables import Account, NodePlatform
from tests.platform_server.clock import Clock
from tests.platform_server.conftest import Made
from tests.platform_server.rows import node_platform


def test_a_unit_of_work_that_raises_leaves_nothing(platform: Platform, clock: Clock) -> None:
    def work(session: Session) -> None:
        node_platform(session, clock())
        raise KeyError

    with pytest.raises(KeyError):
        platform.database.write_now(work)
    assert platform.database.read_now(lambda on: on.scalar(select(func.count(NodePlatform.id)))) == 0


def test_writers_of_two_processes_take_turns(made: Made, platform: Platform, clock: Clock) -> None:
    row = platform.database.write_now(lambda on: node_platform(on, clock()))
    others = [made.open() for _ in range(3)]

    def count(session: Session) -> None:
        found = session.get_one(NodePlatform, row.id)
        session.execute(select(Account))
        found.disk_image_retention_count += 1

    with ThreadPoolExecutor(12) as threads:
        for each in [threads.submit(other.database.write_now, count) for other in others * 20]:
            each.result()
    for other in others:
        other.database.close()
    after = platform.database.read_now(lambda on: on.get_one(NodePlatform, row.id))
    assert after.disk_image_retention_count == row.disk_image_retention_count + 60


def test_a_busy_database_is_tried_again_and_a_broken_rule_is_not(platform: Platform, clock: Clock) -> None:
    runs: list[str] = []

    def busy_once(session: Session) -> str:
        runs.append("busy")
        if len(runs) == 1:
            cause = sqlite3.OperationalError("database is locked")
            cause.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise OperationalError("COMMIT", {}, cause)
        return "done"

    def twice(session: Session) -> None:
        runs.append("twice")
        node_platform(session, clock(), "same")
        node_platform(session, clock(), "same")

    assert platform.database.write_now(busy_once) == "done"
    with pytest.raises(IntegrityError):
        platform.database.write_now(twice)
    assert runs == ["busy", "busy", "twice"]


def test_whoever_gets_the_turn_before_a_whole_group_still_does_its_own_work(platform: Platform) -> None:
    """Locks are not fair: this one came last, and is let in first."""
    platform.database._waiting.extend(_Waiting(lambda on: "another's") for _ in range(GROUP))
    assert platform.database.write_now(lambda on: "mine") == "mine"


def test_references_are_enforced(platform: Platform, clock: Clock) -> None:
    def dangling(session: Session) -> None:
        row = node_platform(session, clock())
        session.execute(update(NodePlatform).values(default_publication_id=row.id))

    with pytest.raises(IntegrityError):
        platform.database.write_now(dangling)


def test_a_reader_sees_one_state(platform: Platform, clock: Clock) -> None:
    def read(session: Session) -> tuple[int, int]:
        count = select(func.count(NodePlatform.id))
        before = session.scalar(count) or 0
        platform.database.write_now(lambda on: node_platform(on, clock()))
        return before, session.scalar(count) or 0

    assert platform.database.read_now(read) == (0, 0)
