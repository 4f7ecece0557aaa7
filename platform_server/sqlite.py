"""SQLite: how its file is opened, and which of its errors pass."""

from __future__ import annotations

import os
import sqlite3

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

SCHEME = "sqlite:///"
# An engine's option: whether its transactions write.
WRITES = "platform_writes"
# How long a writer waits for another process's transaction, in seconds.
_BUSY = 10.0
# What a connection remembers: its file's path, and which file that was.
_FILE = "platform_file"
# https://www.sqlite.org/rescode.html, by the primary code
_UNWRITABLE = {
    sqlite3.SQLITE_FULL: "its disk is full",
    sqlite3.SQLITE_IOERR: "its disk fails, or is full",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_CANTOPEN: "its file can't be opened",
}


def engine(url: str, pool_size: int) -> Engine:
    """Connections to one file, at most `pool_size` at a time."""
    # hidden: what a statement failed with may be secret, and errors are logged
    made = create_engine(url, hide_parameters=True, pool_size=pool_size, max_overflow=0, pool_timeout=30)
    event.listen(made, "connect", _configure)
    event.listen(made, "connect", _remember)
    event.listen(made, "begin", _begin)
    return made


def engine_without_references(url: str) -> Engine:
    """A new connection each time, which lets tables be made anew that others refer to."""
    made = create_engine(url, poolclass=NullPool)
    event.listen(made, "connect", _configure)
    event.listen(made, "connect", _remember)
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


def unwritable(error: BaseException) -> str | None:
    """Why the file can't be written, whatever is to be written; None when the error is another one.

    It may be what the error came from: a full disk ends the transaction, and then no savepoint is found.
    """
    cause: BaseException | None = error
    while cause is not None:
        code = getattr(cause, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            return "its file was moved or replaced: start the platform again"
        if why := _UNWRITABLE.get(code & 0xFF):
            return why
        cause = cause.__cause__ or cause.__context__
    return None


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


def _remember(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
    path = connection.execute("PRAGMA database_list").fetchone()[2]
    entry.info[_FILE] = path, _identity(path)


def _require_in_place(connection: Connection) -> None:
    """Raise OperationalError when the file has lost its name: in WAL mode SQLite itself goes on with it."""
    path, opened = connection.info[_FILE]
    if _identity(path) != opened:
        moved = sqlite3.OperationalError("the database's file was moved or replaced")
        moved.sqlite_errorcode = sqlite3.SQLITE_READONLY_DBMOVED
        raise OperationalError("BEGIN", None, moved) from moved


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _begin(connection: Connection) -> None:
    _require_in_place(connection)
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
