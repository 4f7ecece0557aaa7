"""The database: connections, and units of work that are one transaction each.

A unit of work is a function of a Session. It may run again when the database asks for that (another process
wrote first, or the connection was lost), so it has no other effect than its transaction. What it returns
outlives the session.

On SQLite one transaction at a time writes, and holds the units of work that waited for it (`group_commit`);
readers see the state at their beginning (WAL). On PostgreSQL `SELECT … FOR UPDATE` does the same for the
rows that matter: whoever changes a publication or what a platform boots holds that platform's row.

Several processes may work on one database. What they share is there and nowhere else.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from platform_server import postgres, sqlite
from platform_server.errors import StateError, Unavailable, Unwritable
from platform_server.group_commit import AnyUnit, GroupCommit, Unit

log = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Work = Callable[[Session], _Result]

# How often a conflict is tried again, and for how many seconds a server that is away.
_ATTEMPTS = 6
_FIRST_WAIT = 0.02
_PATIENCE = 10.0
# How long a write that failed speaks for the next one, in seconds.
_STEADY = 10.0
READERS = 4
# Units of work side by side on PostgreSQL.
WRITERS = 8


class Database:
    """One database by its URL, `sqlite:///FILE` or `postgresql://…`.

    Methods may be called from any thread; the async ones don't block. Raises StateError for a URL that can't
    be read; methods raise Unavailable when a server stays away or is busy for too long, and Unwritable while
    nothing can be written: a disk is full, fails or is read-only.
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
        self._failed: _Failed | None = None
        self._groups = GroupCommit(self._run)
        # Each event loop has limiters of its own: the workers run on another one than the server.
        self._reading: RunVar[anyio.CapacityLimiter] = RunVar("reading")
        self._writing: RunVar[anyio.CapacityLimiter] = RunVar("writing")

    async def read(self, work: Work[_Result]) -> _Result:
        """Run `work` on a consistent view; what it writes is thrown away, or refused."""
        limiter = _limiter(self._reading, READERS)
        return await anyio.to_thread.run_sync(self.read_now, work, limiter=limiter)

    async def write(self, work: Work[_Result]) -> _Result:
        """Run `work` in a transaction that is committed when this returns, and undone when it raises."""
        if self.is_sqlite:
            return await self._groups.do(_unit(work))
        limiter = _limiter(self._writing, WRITERS)
        return await anyio.to_thread.run_sync(self.write_now, work, limiter=limiter)

    async def write_together(
        self, work: Callable[[Connection, Sequence[_Item]], Sequence[_Result]], item: _Item
    ) -> _Result:
        """`write` for many that do the same: `work` gets the items of all that wait, and returns as many
        results. Where it raises, it is run for each item alone.
        """
        return await self._groups.do(Unit(work, item))

    def read_now(self, work: Work[_Result]) -> _Result:
        """`read`, in this thread."""

        def once() -> _Result:
            with Session(self._readers, expire_on_commit=False) as session:
                return work(session)

        if not self.is_sqlite:
            return self._patiently(once)
        with self._watched():
            return once()

    def write_now(self, work: Work[_Result]) -> _Result:
        """`write`, in this thread."""
        if self.is_sqlite:
            return self._groups.do_now(_unit(work))
        return self._patiently(lambda: self._alone(work))

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that reads one state of the database for as long as it is held."""
        with self._readers.connect() as connection:
            yield connection

    @contextmanager
    def migrating(self, patience: float = 1.0) -> Iterator[Connection]:
        """One transaction on a connection of its own, in which tables may be made anew; one at a time. It
        waits for a table that is in use for `patience` seconds, and whoever comes then waits behind it.
        """
        if self.server is None:
            engine = sqlite.engine_without_references(self.url)
            engine = engine.execution_options(**{sqlite.WRITES: True})
        else:
            engine = self.server.engine_without_pool()
        with engine.begin() as connection:
            if self.server is not None:
                postgres.begin_migration(connection, patience)
            yield connection

    def trouble(self) -> str | None:
        """Why the database takes no writes; None when it does. What failed a while ago is tried again."""
        failed = self._failed
        if failed is None:
            return None
        if time.monotonic() - failed.at < _STEADY:
            return failed.why
        try:
            self.write_now(_touch)
        except (Unavailable, DBAPIError):
            return failed.why
        self._failed = None
        log.warning("%s can be written again", self.name)
        return None

    def is_locked(self, error: DBAPIError) -> bool:
        """Whether somebody else had for too long what a migration needs."""
        if self.server is None:
            return sqlite.may_heal(error)
        return getattr(error.orig, "sqlstate", None) in postgres.LOCKED

    def explained(self, error: DBAPIError) -> StateError:
        """What the database refused, for whoever set it up."""
        if self.server is None:
            why = sqlite.unwritable(error)
            hint = "name a platform's state folder" if why is None else f"{why}: see to it, then try again"
            return StateError(f"{self.name}: {error.orig}", hint)
        return self.server.explained(error.orig or error)

    def close(self) -> None:
        """Close every connection."""
        self._groups.close()
        self.engine.dispose()

    def _patiently(self, once: Callable[[], _Result]) -> _Result:
        """Do it again after what may heal."""
        failed = 0
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return once()
            except PoolTimeout as error:
                raise _busy("every connection is at work") from error
            except (StaleDataError, DBAPIError) as error:
                failed += 1
                is_over = time.monotonic() >= until
                if self.server is not None and isinstance(error, DBAPIError) and postgres.lost(error):
                    if is_over:
                        if (why := postgres.unwritable(error)) is not None:
                            raise self._unwritable(why) from error
                        raise Unavailable(
                            "the platform's database does not answer", "send the request again later"
                        ) from error
                elif failed >= _ATTEMPTS or is_over or not self._heals(error):
                    if isinstance(error, DBAPIError) and self._is_busy(error):
                        raise _busy("somebody else has held for too long what it needs") from error
                    raise
            time.sleep(min(1.0, _FIRST_WAIT * 2**failed) * random.random())

    def _is_busy(self, error: DBAPIError) -> bool:
        """Whether others are in the way, and nothing is wrong with the work."""
        if self.server is None:
            return sqlite.may_heal(error)
        return getattr(error.orig, "sqlstate", None) in postgres.BUSY

    def _heals(self, error: BaseException) -> bool:
        """Whether the same work may succeed when it is done again."""
        if isinstance(error, StaleDataError):
            return True
        if not isinstance(error, DBAPIError):
            return False
        if self.server is None:
            return sqlite.may_heal(error)
        # Whoever wrote the same first is found by the next attempt.
        return postgres.may_heal(error) or getattr(error.orig, "sqlstate", None) == postgres.UNIQUE

    def _alone(self, work: Work[_Result]) -> _Result:
        with self._transaction() as connection:
            return _in_session(connection, work)

    def _run(self, group: Sequence[AnyUnit]) -> Sequence[AnyUnit]:
        """One transaction, in which a unit that fails takes no other along; those to be done again."""
        alike: dict[object, list[AnyUnit]] = {}
        for each in group:
            alike.setdefault(each.work, []).append(each)

        def once() -> None:
            with self._transaction() as connection:
                for units in alike.values():
                    self._do(connection, units)

        self._patiently(once)
        again = [each for each in group if each.error is not None and self._heals(each.error)]
        for each in again:
            each.failures += 1
        return [each for each in again if each.failures < _ATTEMPTS]

    def _do(self, connection: Connection, units: Sequence[AnyUnit]) -> None:
        """Units of the same work in a savepoint; if they fail together, each in one of its own."""
        try:
            with connection.begin_nested():
                values = units[0].work(connection, [each.item for each in units])
        except BaseException as error:  # a panic in Rust is no Exception
            if self._undone(connection, error):
                raise
            if len(units) == 1:
                units[0].error = error
                return
            log.debug("units of one group are done one by one, since together they fail", exc_info=True)
            for each in units:
                self._do(connection, [each])
        else:
            for each, value in zip(units, values, strict=True):
                each.value, each.error = value, None

    def _undone(self, connection: Connection, error: BaseException) -> bool:
        """Whether the error took the whole transaction along, and not only the unit's savepoint; one that no
        other unit can be written after counts so as well.
        """
        if isinstance(error, DBAPIError) and self._why_unwritable(error) is not None:
            return True
        if self.server is None:
            return not sqlite.in_transaction(connection)
        return isinstance(error, DBAPIError) and postgres.lost(error)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """One transaction. A commit whose answer was lost is asked for, so that nothing is done twice."""
        if self.server is None:
            with self._watched(), self._writers.begin() as connection:
                yield connection
            return
        with self._watched(), self._writers.connect() as connection:
            connection.begin()
            try:
                yield connection
            except DBAPIError as error:
                if postgres.unwritable(error) is not None:
                    # The next one may be to a server that can be written.
                    connection.invalidate()
                raise
            transaction = postgres.transaction_id(connection)
            try:
                connection.commit()
            except DBAPIError as error:
                if transaction is None or not postgres.lost(error):
                    raise
                connection.close()
                was = postgres.committed(self._readers, transaction, _PATIENCE)
                if was is None:
                    raise Unavailable(
                        "the platform's database does not answer, and may have done it or not",
                        "look at what is there, then send the request again",
                    ) from error
                if not was:
                    raise

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """What says that nothing can be written is kept for `trouble`, and raised as Unwritable."""
        try:
            yield
        except PoolTimeout as error:
            raise _busy("every connection is at work") from error
        except DBAPIError as error:
            why = self._why_unwritable(error)
            if why is None or (self.server is not None and postgres.lost(error)):
                raise
            raise self._unwritable(why) from error

    def _why_unwritable(self, error: DBAPIError) -> str | None:
        return sqlite.unwritable(error) if self.server is None else postgres.unwritable(error)

    def _unwritable(self, why: str) -> Unwritable:
        if self._failed is None:
            log.error("%s can't be written: %s", self.name, why)
        self._failed = _Failed(why, time.monotonic())
        return Unwritable(
            f"the platform's database can't be written: {why}",
            "its operator has to see to it; send the request again later",
        )


def _busy(why: str) -> Unavailable:
    log.warning("the database is busy: %s", why)
    return Unavailable(f"the platform's database is busy: {why}", "send the request again later")


@dataclass(frozen=True, slots=True)
class _Failed:
    """A write that the database did not take, and when, by the monotonic clock."""

    why: str
    at: float


def _touch(session: Session) -> None:
    """Write, and change nothing."""
    session.execute(text("UPDATE alembic_version SET version_num = version_num"))


def _unit(work: Work[_Result]) -> Unit[None, _Result]:
    """A unit that nobody else's work is done with."""
    return Unit(lambda connection, items: [_in_session(connection, work)], None)


def _in_session(connection: Connection, work: Work[_Result]) -> _Result:
    """Run `work` in the connection's savepoint or transaction, which whoever began it ends."""
    with Session(connection, expire_on_commit=False, join_transaction_mode="rollback_only") as session:
        value = work(session)
        # The session's own end: what was returned stays as it is, however the connection's commit ends.
        session.commit()
        return value


def _limiter(variable: RunVar[anyio.CapacityLimiter], tokens: int) -> anyio.CapacityLimiter:
    try:
        return variable.get()
    except LookupError:
        variable.set(anyio.CapacityLimiter(tokens))
        return variable.get()
