"""PostgreSQL: its URL, how it is connected to, and what its errors mean.

Invariants rest on three things, so that READ COMMITTED is enough to write, and no unit of work runs twice
for a conflict that never was, as with SERIALIZABLE:

- `FOR UPDATE` of a node platform's row, for whatever changes its publications or its default;
- unique indexes, for what is new: commits, images, names and deliveries;
- the job's lease, for outcomes.

Who reads, reads one state (REPEATABLE READ, read only).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from platform_server.errors import StateError

SCHEMES = ("postgresql://", "postgres://")
# the oldest that its makers still mend
OLDEST = 14
# Statements that the server ends to keep transactions in an order, or because a lock did not come in time
# (PostgreSQL, appendix A: serialization_failure, deadlock_detected, lock_not_available).
LOCKED = frozenset({"55P03", "40P01"})
_AGAIN = LOCKED | {"40001"}
# query_canceled as well: a statement that took longer than it may
BUSY = _AGAIN | {"57014"}
UNIQUE = "23505"
# The server goes down, comes up, or has no connection left (57P01, 57P02, 57P03, 53300; class 08).
_ELSEWHERE = frozenset({"57P01", "57P02", "57P03", "53300"})
# read_only_sql_transaction, disk_full
_READ_ONLY = "25006"
_UNWRITABLE = {_READ_ONLY: "it is read-only", "53100": "its disk is full"}
_WRONG_PASSWORD, _WRONG_USER, _NO_DATABASE, _DENIED = "28P01", "28000", "3D000", "42501"

# Advisory locks are numbers that the programs of one database agree upon.
_MIGRATION = 0x6469736B_696D6167

# Seconds. What is longer was forgotten, or hangs.
_CONNECT, _STATEMENT, _LOCK, _IDLE_IN_TRANSACTION = 10, 30, 10, 60
_SESSION = (
    f"-c statement_timeout={_STATEMENT}s -c lock_timeout={_LOCK}s "
    f"-c idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION}s -c timezone=UTC"
)
_PLACE = ("host", "port", "dbname")
# A server that is gone without a word is noticed after half a minute.
_NETWORK = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "30000",
}


@dataclass(frozen=True)
class Server:
    """A database by its URL, as libpq reads it: several hosts, `service=` and `passfile=` work."""

    url: str = field(repr=False)

    @property
    def parameters(self) -> dict[str, Any]:
        """The URL's parts by libpq's names. Raises StateError, which shows nothing of the URL."""
        if not self.url.startswith(SCHEMES):
            raise StateError(
                "the database's URL: expected postgresql://USER@HOST:PORT/DATABASE, found none",
                "PostgreSQL's manual calls it a connection URI; without one the database is in the folder",
            )
        try:
            found = conninfo_to_dict(self.url)
        except psycopg.ProgrammingError:
            # What libpq says quotes the URL, password and all.
            found = None
        # A password with a bare @ or / in it goes on in what libpq takes for the host, port or database. The
        # first character of a host may be @: an abstract socket.
        if found is None or any("@" in str(found.get(part) or "")[1:] for part in _PLACE):
            raise StateError(
                "the database's URL can't be read (it is not shown: it may hold a password)",
                "write postgresql://USER@HOST:PORT/DATABASE, with %XX for characters that are not letters",
            )
        return found

    @property
    def has_password(self) -> bool:
        """Whether a secret stands in the URL itself."""
        return bool(self.parameters.keys() & {"password", "sslpassword"})

    @property
    def name(self) -> str:
        """The URL as it may be shown."""
        given = self.parameters
        if not given.keys() & {"host", "hostaddr", "dbname"} and "service" in given:
            return f"postgresql:///?service={given['service']}"
        user = f"{quote(given['user'])}@" if "user" in given else ""
        hosts = str(given.get("host") or given.get("hostaddr") or "").split(",")
        ports = str(given.get("port") or "").split(",")
        ports = ports * len(hosts) if len(ports) == 1 else ports
        places = ",".join(
            quote(host, safe=":[]") + (f":{port}" if port else "")
            for host, port in zip(hosts, ports, strict=False)
        )
        return f"postgresql://{user}{places}/{quote(str(given.get('dbname') or ''))}"

    def engine(self, pool_size: int) -> Engine:
        """Connections, at most twice `pool_size` at a time."""
        return create_engine(
            "postgresql+psycopg://",
            creator=self.connect,
            hide_parameters=True,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=_STATEMENT,
            pool_use_lifo=True,
        )

    def engine_without_pool(self) -> Engine:
        """A new connection each time."""
        return create_engine("postgresql+psycopg://", creator=self.connect, poolclass=NullPool)

    def connect(self) -> psycopg.Connection[Any]:
        """A connection to a server that can be written, with timeouts; what the URL says goes first."""
        given = self.parameters
        ours = {
            "connect_timeout": str(_CONNECT),
            "fallback_application_name": "disk-image platform",
            "target_session_attrs": "read-write",
            "client_encoding": "utf8",
            **_NETWORK,
        }
        options = f"{_SESSION} {given.get('options', '')}".strip()
        return psycopg.connect(make_conninfo("", **{**ours, **given, "options": options}))

    def require(self) -> None:
        """Raise StateError unless the server answers, is new enough, and keeps Unicode."""
        try:
            with self.connect() as connection:
                version = connection.info.server_version // 10000
                encoding = connection.info.parameter_status("server_encoding")
        except psycopg.Error as error:
            raise self.explained(error) from None
        if version < OLDEST:
            raise StateError(
                f"{self.name}: expected PostgreSQL {OLDEST} or newer, found {version}", "upgrade the server"
            )
        if encoding != "UTF8":
            raise StateError(
                f"{self.name}: expected the encoding UTF8, found {encoding}",
                "createdb --encoding UTF8 --template template0 DATABASE",
            )

    def explained(self, error: BaseException) -> StateError:
        """What failed and what to do. The server's own words hold no password."""
        said = " ".join(str(error).split())
        return StateError(f"{self.name}: {said}", _hint(error, said))


def begin_migration(connection: Connection, patience: float) -> None:
    """Wait until nobody else migrates; from then on wait for each table at most `patience` seconds."""
    for statement in (
        "SET LOCAL statement_timeout = 0",
        "SET LOCAL lock_timeout = 0",
        f"SELECT pg_advisory_xact_lock({_MIGRATION})",
        f"SET LOCAL lock_timeout = {int(patience * 1000)}",
    ):
        connection.exec_driver_sql(statement)


def primary(error: DBAPIError) -> str:
    """What the server or the driver says first, without the values that a server quotes after that."""
    cause = error.orig
    said = cause.diag.message_primary if isinstance(cause, psycopg.Error) else None
    return said or ("" if getattr(cause, "sqlstate", None) else str(cause))


def lost(error: DBAPIError) -> bool:
    """Whether there is no connection any more, or there never was one: what ran on it is undone, unless it
    was a commit.
    """
    state = getattr(error.orig, "sqlstate", None)
    return isinstance(error.orig, psycopg.OperationalError) and (
        error.connection_invalidated or state is None or state in _ELSEWHERE or state.startswith("08")
    )


def unwritable(error: DBAPIError) -> str | None:
    """Why the server takes no writes; None when the error is another one."""
    state = getattr(error.orig, "sqlstate", None)
    if state is None and lost(error) and _is_read_only(str(error.orig)):
        # `connect` asked for a server that can be written.
        return _UNWRITABLE[_READ_ONLY]
    return _UNWRITABLE.get(state or "")


def may_heal(error: DBAPIError) -> bool:
    """Whether the same work may succeed when it is done again."""
    return lost(error) or getattr(error.orig, "sqlstate", None) in _AGAIN


def transaction_id(connection: Connection) -> int | None:
    """The transaction's id, by which `committed` finds it; None when it has written nothing."""
    found = connection.scalar(text("SELECT pg_current_xact_id_if_assigned()::text"))
    return None if found is None else int(found)


def committed(engine: Engine, transaction: int, patience: float) -> bool | None:
    """Whether a transaction whose end was not seen was committed; None when that can't be found out within
    `patience` seconds. A server that crashed meanwhile knows it as well.
    """
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            with engine.connect() as connection:
                status = connection.scalar(
                    text("SELECT pg_xact_status(CAST(:id AS text)::xid8)"), {"id": str(transaction)}
                )
            if status in ("committed", "aborted"):
                return bool(status == "committed")
        except DBAPIError as error:
            if not lost(error):
                return None
        time.sleep(0.1)
    return None


def _hint(error: BaseException, said: str) -> str:
    """By the server's code where there is one; a refused connection has only words, in English or not."""
    state = getattr(error, "sqlstate", None)
    if state == _DENIED:
        return "grant it: GRANT CREATE, USAGE ON SCHEMA public TO the platform's user, in its database"
    if state == _NO_DATABASE or ("database" in said and "does not exist" in said):
        return "createdb --encoding UTF8 --owner USER DATABASE, then disk-image platform init"
    if state in (_WRONG_PASSWORD, _WRONG_USER) or "authentication" in said or "password" in said:
        return "give the password in PGPASSWORD, or a passfile; pg_hba.conf says who may come from where"
    if _is_read_only(said):
        return "name the server that can be written; several hosts may stand in the URL"
    return "see that the server runs, and that host, port and user are right"


def _is_read_only(said: str) -> bool:
    return "read-only" in said or "hot standby" in said
