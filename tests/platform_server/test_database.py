"""Units of work: one transaction each, in a row on SQLite, run again when the database asks."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from psycopg.errors import DeadlockDetected
from sqlalchemy import Connection, func, select, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from platform_server import node_platforms
from platform_server.database import Database
from platform_server.errors import Unavailable, Unwritable
from platform_server.group_commit import GROUP, AnyUnit, GroupCommit, Unit
from platform_server.state_folder import Platform
from platform_server.tables import Account, NodePlatform
from tests.platform_server.clock import Clock
from tests.platform_server.made import Made
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
        found = node_platforms.hold(session, row.id)
        session.execute(select(Account))
        found.disk_image_retention_count += 1

    with ThreadPoolExecutor(12) as threads:
        for each in [threads.submit(other.database.write_now, count) for other in others * 20]:
            each.result()
    for other in others:
        other.database.close()
    after = platform.database.read_now(lambda on: on.get_one(NodePlatform, row.id))
    assert after.disk_image_retention_count == row.disk_image_retention_count + 60


def test_a_busy_database_is_tried_again_and_a_broken_rule_is_refused(
    platform: Platform, clock: Clock
) -> None:
    runs: list[str] = []

    def busy_once(session: Session) -> str:
        runs.append("busy")
        if len(runs) == 1:
            raise _busy(platform)
        return "done"

    def twice(session: Session) -> None:
        runs.append("twice")
        node_platform(session, clock(), "same")
        node_platform(session, clock(), "same")

    assert platform.database.write_now(busy_once) == "done"
    with pytest.raises(IntegrityError):
        platform.database.write_now(twice)
    # on PostgreSQL another process may have written the same, and then the next attempt finds it
    assert runs[:3] == ["busy", "busy", "twice"]
    assert len(runs) == (3 if platform.database.is_sqlite else 8)


def _busy(platform: Platform) -> OperationalError:
    if not platform.database.is_sqlite:
        return OperationalError("UPDATE", {}, DeadlockDetected("deadlock detected"))
    cause = sqlite3.OperationalError("database is locked")
    cause.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return OperationalError("COMMIT", {}, cause)


def test_one_that_fails_takes_none_of_its_group_along(platform: Platform, clock: Clock) -> None:
    """More than a group holds, from threads and an event loop at once."""

    def work(number: int) -> str:
        def insert(session: Session) -> str:
            node_platform(session, clock(), f"platform-{number}")
            if number % 3 == 0:
                raise KeyError(number)
            return f"platform-{number}"

        return platform.database.write_now(insert)

    async def together() -> list[str]:
        kept: list[str] = []

        async def one(number: int) -> None:
            def insert(session: Session) -> str:
                node_platform(session, clock(), f"platform-{number}")
                if number % 3 == 0:
                    raise KeyError(number)
                return f"platform-{number}"

            with suppress(KeyError):
                kept.append(await platform.database.write(insert))

        async with anyio.create_task_group() as tasks:
            for number in range(GROUP, 4 * GROUP):
                tasks.start_soon(one, number)
        return kept

    with ThreadPoolExecutor(GROUP) as threads:
        orders = [threads.submit(work, number) for number in range(GROUP)]
        kept = anyio.run(together)
        for each in orders:
            with suppress(KeyError):
                kept.append(each.result())
    names = platform.database.read_now(lambda on: on.scalars(select(NodePlatform.name)).all())
    assert sorted(names) == sorted(kept) == sorted(f"platform-{n}" for n in range(4 * GROUP) if n % 3)


class Panic(BaseException):
    """As libraries in Rust raise it."""


def test_a_panic_takes_none_of_its_group_along(platform: Platform) -> None:
    begun, go_on = threading.Event(), threading.Event()
    calls: list[Sequence[str]] = []
    ended: list[str] = []

    def work(connection: Connection, names: Sequence[str]) -> Sequence[str]:
        calls.append(names)
        if "first" in names:
            begun.set()
            assert go_on.wait(30)
        if "panics" in names:
            raise Panic
        return [f"{name} done" for name in names]

    async def one(name: str) -> None:
        try:
            ended.append(await platform.database.write_together(work, name))
        except Panic:
            ended.append(f"{name}")

    async def group() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, "first")
            await anyio.to_thread.run_sync(begun.wait)
            for name in ("before", "panics", "after"):
                tasks.start_soon(one, name)
            await anyio.wait_all_tasks_blocked()
            go_on.set()

    anyio.run(group)
    assert sorted(ended) == ["after done", "before done", "first done", "panics"]
    # all together, and since that failed, each alone
    assert [sorted(each) for each in calls] == [
        ["first"],
        ["after", "before", "panics"],
        *([each] for each in calls[1]),
    ]


def test_a_full_disk_fails_its_whole_group(tmp_path: Path) -> None:
    """SQLite undoes the whole transaction then: whoever came before in it must not hear that it is done."""
    database = Database(f"sqlite:///{tmp_path}/full.db")
    begun, go_on = threading.Event(), threading.Event()
    kept: list[str] = []

    def insert(connection: Connection, name: str) -> None:
        if name == "3":
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        connection.exec_driver_sql(
            "INSERT INTO full_disk VALUES (?)", (name * (10**6 if name == "3" else 1),)
        )

    def one_kind(connection: Connection, names: Sequence[str]) -> Sequence[str]:
        if "0" in names:
            begun.set()
            assert go_on.wait(30)
        for name in names:
            insert(connection, name)
        return names

    def another_kind(connection: Connection, names: Sequence[str]) -> Sequence[str]:
        return one_kind(connection, names)

    async def one(work: Callable[[Connection, Sequence[str]], Sequence[str]], name: str) -> None:
        with suppress(Unwritable):
            kept.append(await database.write_together(work, name))

    async def group() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, one_kind, "0")
            await anyio.to_thread.run_sync(begun.wait)
            for name in ("1", "2", "3", "4"):
                tasks.start_soon(one, another_kind if name == "1" else one_kind, name)
            await anyio.wait_all_tasks_blocked()
            go_on.set()

    with database.migrating() as connection:
        connection.exec_driver_sql("CREATE TABLE full_disk (name TEXT)")
    anyio.run(group)
    names = database.read_now(
        lambda on: on.connection().exec_driver_sql("SELECT name FROM full_disk").scalars().all()
    )
    database.close()
    assert "3" not in kept
    assert sorted(names) == sorted(kept)


def test_who_waits_for_a_server_that_is_gone_waits_once() -> None:
    """Not once for each group before its own."""
    runs: list[int] = []
    full = threading.Event()

    def run(group: Sequence[AnyUnit]) -> Sequence[AnyUnit]:
        assert full.wait(30)
        runs.append(len(group))
        raise Unavailable("the database does not answer", "send the request again later")

    groups = GroupCommit(run)

    async def one() -> None:
        with pytest.raises(Unavailable):
            await groups.do(Unit(lambda connection, items: items, "never"))

    async def many() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(4 * GROUP):
                tasks.start_soon(one)
            await anyio.wait_all_tasks_blocked()
            full.set()

    anyio.run(many)
    groups.close()
    assert len(runs) == 1


def test_whoever_is_cancelled_waits_for_what_it_began(platform: Platform, clock: Clock) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def insert(session: Session) -> None:
        begun.set()
        assert go_on.wait(30)
        node_platform(session, clock(), "begun")

    async def cancelled() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(platform.database.write, insert)
            await anyio.to_thread.run_sync(begun.wait)
            tasks.cancel_scope.cancel()
            go_on.set()
        names = platform.database.read_now(lambda on: on.scalars(select(NodePlatform.name)).all())
        assert names == ["begun"]

    anyio.run(cancelled)


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
