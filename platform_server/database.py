"""The database: connections, and units of work that are one transaction each.

A unit of work is a function of a Session. It may run again when the database asks for that (another process
wrote first), so it has no other effect than its transaction. What it returns outlives the session.

On SQLite one transaction at a time writes, and holds the units of work that waited for it; readers see the
state at their beginning (WAL). On a server database `SELECT … FOR UPDATE` does the same for the rows that
matter: whoever changes a publication or what a platform boots holds that platform's row.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

_Result = TypeVar("_Result")
Work = Callable[[Session], _Result]

# How long a writer waits for another process's transaction, in seconds.
_BUSY = 10.0
_ATTEMPTS = 6
_FIRST_WAIT = 0.02
# Statements that a server database ends to keep transactions in an order (serialization failure, deadlock).
_RETRY_STATES = frozenset({"40001", "40P01"})
_WRITES = "platform_writes"
READERS = 4
# Units of work in one transaction.
GROUP = 64


class _Waiting(Generic[_Result]):
    """A unit of work that waits for its turn, and then what came of it."""

    def __init__(self, work: Work[_Result]) -> None:
        self.work = work
        self.done = False
        self.error: BaseException | None = None
        self.value: _Result | None = None

    def result(self) -> _Result:
        """What the work returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return cast(_Result, self.value)


class Database:
    """One database by its URL. Methods may be called from any thread; the async ones don't block."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url, pool_size=READERS + 1, max_overflow=0, pool_timeout=30)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        if self.is_sqlite:
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._writers = self.engine.execution_options(**{_WRITES: True})
        self._turn = threading.Lock()
        self._waiting: deque[_Waiting[Any]] = deque()
        # Each event loop has limiters of its own: the workers run on another one than the server.
        self._reading: RunVar[anyio.CapacityLimiter] = RunVar("reading")
        self._writing: RunVar[anyio.CapacityLimiter] = RunVar("writing")

    async def read(self, work: Work[_Result]) -> _Result:
        """Run `work` on a consistent view; what it writes is thrown away."""
        limiter = _limiter(self._reading, READERS)
        return await anyio.to_thread.run_sync(self.read_now, work, limiter=limiter)

    async def write(self, work: Work[_Result]) -> _Result:
        """Run `work` in a transaction that is committed when this returns, and undone when it raises."""
        limiter = _limiter(self._writing, GROUP if self.is_sqlite else READERS)
        return await anyio.to_thread.run_sync(self.write_now, work, limiter=limiter)

    def read_now(self, work: Work[_Result]) -> _Result:
        """`read`, in this thread."""
        with Session(self.engine, expire_on_commit=False) as session:
            return work(session)

    def write_now(self, work: Work[_Result]) -> _Result:
        """`write`, in this thread."""
        failed = 0
        while True:
            try:
                return self._in_turn(work) if self.is_sqlite else self._alone(work)
            except (DBAPIError, StaleDataError) as error:
                failed += 1
                if failed >= _ATTEMPTS or not _may_heal(error):
                    raise
                time.sleep(_FIRST_WAIT * 2**failed * random.random())

    @property
    def name(self) -> str:
        """The URL as it may be shown, without a password."""
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """One transaction on a connection of its own, in which tables may be made anew."""
        engine = create_engine(self.engine.url, poolclass=NullPool)
        if self.is_sqlite:
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "connect", _without_foreign_keys)
            event.listen(engine, "begin", _begin_sqlite)
        with engine.execution_options(**{_WRITES: True}).begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def _alone(self, work: Work[_Result]) -> _Result:
        with Session(self._writers, expire_on_commit=False) as session, session.begin():
            return work(session)

    def _in_turn(self, work: Work[_Result]) -> _Result:
        """Whoever has the turn also runs what waits behind it, so that one sync to disk serves all."""
        mine = _Waiting(work)
        self._waiting.append(mine)
        with self._turn:
            while not mine.done:
                self._run([self._waiting.popleft() for _ in range(min(GROUP, len(self._waiting)))])
        return mine.result()

    def _run(self, group: list[_Waiting[Any]]) -> None:
        """One transaction with a savepoint for each unit of work: one that fails takes no other along."""
        try:
            with self._writers.begin() as connection:
                for each in group:
                    try:
                        with (
                            Session(
                                connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
                            ) as session,
                            session.begin(),
                        ):
                            each.value = each.work(session)
                    except Exception as error:
                        each.error = error
        except BaseException as error:
            for each in group:
                each.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            for each in group:
                each.done = True


def _limiter(variable: RunVar[anyio.CapacityLimiter], tokens: int) -> anyio.CapacityLimiter:
    try:
        return variable.get()
    except LookupError:
        variable.set(anyio.CapacityLimiter(tokens))
        return variable.get()


def _configure_sqlite(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
    # Transactions begin where `_begin_sqlite` says so, not where the driver guesses.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        # An answered webhook outlives a power cut.
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={int(_BUSY * 1000)}",
        "journal_size_limit=67108864",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _without_foreign_keys(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
    connection.execute("PRAGMA foreign_keys=OFF")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _may_heal(error: DBAPIError | StaleDataError) -> bool:
    if isinstance(error, StaleDataError):
        return True
    cause = error.orig
    if isinstance(cause, sqlite3.OperationalError):
        return cause.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return getattr(cause, "sqlstate", None) in _RETRY_STATES
