"""Migrating, while servers serve: one transaction for all steps, so that a kill leaves the schema it found.

A revision's first digit is its epoch. Within an epoch each migration only adds what the servers of the
revision before can do without: tables, indexes that are not unique, columns that may be null. So a server
works on its own schema and every later one of its epoch, and an update goes

    forward: migrate, then replace the servers       back: replace the servers, then migrate

What a running server can't live with begins the next epoch (1000), for which all servers are stopped.
"""

from __future__ import annotations

import logging
import random
import time
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from platform_server.database import Database
from platform_server.errors import StateError

log = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
# Where revisions are.
VERSIONS = [_FOLDER / "versions"]
# For how long a migration tries to get its locks between transactions of servers, in seconds.
_PATIENCE = 300.0
# For how long it waits for one lock, at first and at most: servers wait behind it.
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 3.0


@cache
def newest() -> str:
    """The revision that this program works with."""
    revision = _scripts().get_current_head()
    assert revision is not None
    return revision


def current(database: Database) -> str | None:
    """The database's revision; None when it is empty."""
    with database.engine.connect() as connection:
        return revision_of(connection)


def require_compatible(database: Database) -> None:
    """Raise StateError unless the database has this program's schema, or a later one of its epoch."""
    try:
        found = current(database)
    except DBAPIError as error:
        raise database.explained(error) from None
    if found is None or not is_compatible(newest(), found):
        raise StateError(
            f"{database.name}: expected schema {newest()}, found {found or 'an empty database'}",
            "disk-image platform migrate --state DIR (an empty one: disk-image platform init)",
        )


def is_compatible(program: str, schema: str) -> bool:
    """Whether a server of one revision works on the schema of another one."""
    return schema == program or (
        len(schema) == len(program) and schema.isdecimal() and schema[0] == program[0] and schema > program
    )


def migrate(database: Database, revision: str = "head") -> str | None:
    """Bring the database to `revision`, forward or back (`base`: empty); returns the revision before.

    Another process that migrates is waited for. Raises StateError for an unknown revision, a schema that is
    newer than this program, and whatever the database refuses.
    """
    until = time.monotonic() + _PATIENCE
    wait = _FIRST_WAIT
    while True:
        try:
            return _migrate(database, revision, wait)
        except DBAPIError as error:
            if not database.is_locked(error) or time.monotonic() > until:
                raise database.explained(error) from None
            log.info("a table is in use: the migration is tried again")
            time.sleep(random.uniform(0.05, 0.5))
            wait = min(_LONGEST_WAIT, wait * 1.5)


def _migrate(database: Database, revision: str, wait: float) -> str | None:
    with database.migrating(wait) as connection:
        return migrate_in(connection, database.name, revision)


def revision_of(connection: Connection) -> str | None:
    """`current`, on a connection."""
    return MigrationContext.configure(connection).get_current_revision()


def known_revisions() -> list[str]:
    """The revisions of this program, the newest first."""
    return [script.revision for script in _scripts().walk_revisions()]


def migrate_in(connection: Connection, name: str, revision: str = "head") -> str | None:
    """`migrate` of the database `name` in the connection's transaction, which the caller commits."""
    known = known_revisions()
    wanted = newest() if revision == "head" else None if revision == "base" else revision
    before = revision_of(connection)
    for each in (before, wanted):
        if each is not None and each not in known:
            raise StateError(
                f"{name}: revision {each} is not one of this program's ({', '.join(known)})",
                "use the program that made this schema, or a newer one",
            )
    config = _config()
    config.attributes["connection"] = connection
    if wanted is not None and (before is None or known.index(wanted) <= known.index(before)):
        command.upgrade(config, wanted)
    else:
        command.downgrade(config, wanted or "base")
    check_references(connection)
    return before


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(map(str, VERSIONS)))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def check_references(connection: Connection) -> None:
    """Raise StateError for one that leads nowhere: SQLite's are not looked at while tables are made anew."""
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        if broken:
            raise StateError(f"references would lead nowhere: {broken[:3]}", "report this")
