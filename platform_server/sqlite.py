"""SQLite: how its file is opened, and which of its errors pass."""

from __future__ import annotations

import sqlite3

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

SCHEME = "sqlite:///"
# An engine's option: whether its transactions write.
WRITES = "platform_writes"
# How long a writer waits for another process's transaction, in seconds.
_BUSY = 10.0


def engine(url: str, pool_size: int) -> Engine:
    """Connections to one file, at most `pool_size` at a time."""
    # hidden: what a statement failed with may be secret, and errors are logged
    made = create_engine(url, hide_parameters=True, pool_size=pool_size, max_overflow=0, pool_timeout=30)
    event.listen(made, "connect", _configure)
    event.listen(made, "begin", _begin)
    return made


def engine_without_references(url: str) -> Engine:
    """A new connection each time, which lets tables be made anew that others refer to."""
    made = create_engine(url, poolclass=NullPool)
    event.listen(made, "connect", _configure)
    event.listen(made, "connect", _without_foreign_keys)
    event.listen(made, "begin", _begin)
    return made


def may_heal(error: DBAPIError) -> bool:
    """Whether another process had the database for too long."""
    cause = error.orig
    return isinstance(cause, sqlite3.OperationalError) and cause.sqlite_errorcode & 0xFF in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )


def in_transaction(connection: Connection) -> bool:
    """Whether the connection's transaction is still there: a full disk or a failed write ends it as a whole
    (SQLite, "Response To Errors Within A Transaction"), and COMMIT then says nothing.
    """
    return bool(getattr(connection.connection.dbapi_connection, "in_transaction", False))


def _configure(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
    # Transactions begin where `_begin` says so, not where the driver guesses.
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


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
