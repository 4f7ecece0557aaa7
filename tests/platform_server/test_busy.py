"""A database that others are using: who waits for too long hears so, and can come again."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.pool import QueuePool

from platform_server import postgres, sqlite
from platform_server.database import Database
from platform_server.errors import Unavailable
from platform_server.tables import Account
from tests.platform_server.clock import START
from tests.platform_server.made import Made


def _add(database: Database, name: str = "new") -> None:
    database.write_now(lambda on: on.add(Account(name=name, created_at=START)))


def test_another_programs_transaction_on_the_file_is_waited_for_and_then_named(
    made_on_sqlite: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY", 0.05)
    made = made_on_sqlite.copied(tmp_path / "state")
    with (
        closing(made.open().database) as database,
        closing(sqlite3.connect(made.folder / "platform.db", isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="is busy: somebody else has held for too long"):
            _add(database)
        (line,) = caplog.records
        assert (line.levelname, line.exc_info) == ("WARNING", None)
        other.execute("ROLLBACK")
        _add(database)


@pytest.mark.postgres
def test_another_programs_lock_on_the_server_is_waited_for_and_then_named(
    made_elsewhere: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = postgres._SESSION.replace("_timeout=10s", "_timeout=100ms").replace("=30s", "=200ms")
    assert short.count("ms ") == 2
    with closing(made_elsewhere.open().database) as other:
        monkeypatch.setattr(postgres, "_SESSION", short)
        with closing(made_elsewhere.open().database) as database:
            with other.migrating() as connection:
                connection.execute(text("LOCK TABLE accounts IN EXCLUSIVE MODE"))
                with pytest.raises(Unavailable, match="is busy: somebody else has held for too long"):
                    _add(database)
            _add(database)
            with pytest.raises(Unavailable, match="is busy"):
                database.read_now(lambda on: on.execute(select(func.pg_sleep(30))))


def test_a_connection_is_waited_for_and_then_said_to_be_at_work(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(made.open().database) as database:
        pool = database.engine.pool
        assert isinstance(pool, QueuePool)
        monkeypatch.setattr(pool, "_timeout", 0.05)
        with ExitStack() as stack:
            while pool.checkedout() < pool.size() + pool._max_overflow:
                stack.enter_context(database.engine.connect())
            with pytest.raises(Unavailable, match="is busy: every connection is at work"):
                database.read_now(lambda on: on.scalar(select(Account.id)))
            with pytest.raises(Unavailable, match="is busy: every connection is at work"):
                _add(database)
        _add(database)
