"""The database: connections, and units of work that are one transaction each.

A unit of work is a function of a Session. It may run again when the database asks for that (another process
wrote first, or the connection was lost), so it has no other effect than its transaction. What it returns
outlives the session.

On SQLite one transaction at a time writes, and holds the units of work that waited for it; readers see the
state at their beginning (WAL). On PostgreSQL `SELECT … FOR UPDATE` does the same for the rows that matter:
whoever changes a publication or what a platform boots holds that platform's row (see `postgres`).

Several processes may work on one database. What they share is there and nowhere else.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from platform_server import postgres, sqlite
from platform_server.errors import StateError, Unavailable

_Result = TypeVar("_Result")
Work = Callable[[Session], _Result]

# How often a conflict is tried again, and for how many seconds a server that is away.
_ATTEMPTS = 6
_FIRST_WAIT = 0.02
_PATIENCE = 10.0
READERS = 4
# Units of work side by side on PostgreSQL.
WRITERS = 8
# Units of work in one transaction on SQLite.
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
    """One database by its URL, `sqlite:///FILE` or `postgresql://…`.

    Methods may be called from any thread; the async ones don't block. Raises StateError for a URL that can't
    be read; methods raise Unavailable when a server stays away.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.server = None if url.startswith(sqlite.SCHEME) else postgres.Server(url)
        if self.server is None:
            self.name = url
            self.engine = sqlite.engine(url, READERS + 1)
            self._writers = self.engine.execution_options(**{sqlite.WRITES: True})
            self._readers: Engine = self.engine
        else:
            self.name = self.server.name
            self.engine = self.server.engine(READERS + WRITERS)
            self._writers = self.engine.execution_options(isolation_level="READ COMMITTED")
            self._readers = self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        self.is_sqlite = self.server is None
        self._turn = threading.Lock()
        self._waiting: deque[_Waiting[Any]] = deque()
        # Each event loop has limiters of its own: the workers run on another one than the server.
        self._reading: RunVar[anyio.CapacityLimiter] = RunVar("reading")
        self._writing: RunVar[anyio.CapacityLimiter] = RunVar("writing")

    async def read(self, work: Work[_Result]) -> _Result:
        """Run `work` on a consistent view; what it writes is thrown away, or refused."""
        limiter = _limiter(self._reading, READERS)
        return await anyio.to_thread.run_sync(self.read_now, work, limiter=limiter)

    async def write(self, work: Work[_Result]) -> _Result:
        """Run `work` in a transaction that is committed when this returns, and undone when it raises."""
        limiter = _limiter(self._writing, GROUP if self.is_sqlite else WRITERS)
        return await anyio.to_thread.run_sync(self.write_now, work, limiter=limiter)

    def read_now(self, work: Work[_Result]) -> _Result:
        """`read`, in this thread."""

        def once() -> _Result:
            with Session(self._readers, expire_on_commit=False) as session:
                return work(session)

        return once() if self.is_sqlite else self._patiently(once)

    def write_now(self, work: Work[_Result]) -> _Result:
        """`write`, in this thread."""
        if self.is_sqlite:
            return self._patiently(lambda: self._in_turn(work))
        return self._patiently(lambda: self._alone(work))

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """One transaction on a connection of its own, in which tables may be made anew."""
        if self.server is None:
            engine = sqlite.engine_without_references(self.url)
            engine = engine.execution_options(**{sqlite.WRITES: True})
        else:
            engine = self.server.engine_without_pool()
        with engine.begin() as connection:
            yield connection

    def explained(self, error: DBAPIError) -> StateError:
        """What the database refused, for whoever set it up."""
        if self.server is None:
            return StateError(f"{self.name}: {error.orig}", "name a platform's state folder")
        return self.server.explained(error.orig or error)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def _patiently(self, once: Callable[[], _Result]) -> _Result:
        """Do it again after what may heal."""
        failed = 0
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return once()
            except StaleDataError:
                failed += 1
                if failed >= _ATTEMPTS:
                    raise
            except DBAPIError as error:
                failed += 1
                if self.server is not None and postgres.lost(error):
                    if time.monotonic() >= until:
                        raise Unavailable(
                            "the platform's database does not answer", "send the request again later"
                        ) from error
                elif failed >= _ATTEMPTS or not self._may_heal(error):
                    raise
            time.sleep(min(1.0, _FIRST_WAIT * 2**failed) * random.random())

    def _may_heal(self, error: DBAPIError) -> bool:
        if self.server is None:
            return sqlite.may_heal(error)
        # Whoever wrote the same first is found by the next attempt.
        return postgres.may_heal(error) or getattr(error.orig, "sqlstate", None) == postgres.UNIQUE

    def _alone(self, work: Work[_Result]) -> _Result:
        """One transaction. A commit whose answer was lost is asked for, so that nothing is done twice."""
        with Session(self._writers, expire_on_commit=False) as session:
            value = work(session)
            session.flush()
            transaction = postgres.transaction_id(session.connection())
            # What the work returns stays as it is, however the commit ends.
            session.expunge_all()
            try:
                session.commit()
            except DBAPIError as error:
                if transaction is None or not postgres.lost(error):
                    raise
                session.close()
                was = postgres.committed(self._readers, transaction, _PATIENCE)
                if was is None:
                    raise Unavailable(
                        "the platform's database does not answer, and may have done it or not",
                        "look at what is there, then send the request again",
                    ) from error
                if not was:
                    raise
            return value

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
