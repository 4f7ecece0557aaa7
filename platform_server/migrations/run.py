"""Migrating: one transaction for all steps, so that a kill leaves the schema it found."""

from __future__ import annotations

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

_FOLDER = Path(__file__).parent


@cache
def newest() -> str:
    """The revision that this program works with."""
    revision = ScriptDirectory(str(_FOLDER)).get_current_head()
    assert revision is not None
    return revision


def current(database: Database) -> str | None:
    """The database's revision; None when it is empty."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def require_newest(database: Database) -> None:
    """Raise StateError unless the database has this program's schema."""
    try:
        found = current(database)
    except DBAPIError as error:
        raise database.explained(error) from None
    if found != newest():
        raise StateError(
            f"{database.name}: expected schema {newest()}, found {found or 'an empty database'}",
            "disk-image platform migrate --state DIR (an empty one: disk-image platform init)",
        )


def migrate(database: Database, revision: str = "head") -> str | None:
    """Bring the database to `revision`, forward or back (`base`: empty); returns the revision before.

    Raises StateError for an unknown revision, a schema that is newer than this program, and whatever the
    database refuses.
    """
    try:
        return _migrate(database, revision)
    except DBAPIError as error:
        raise database.explained(error) from None


def _migrate(database: Database, revision: str) -> str | None:
    scripts = ScriptDirectory(str(_FOLDER))
    known = [script.revision for script in scripts.walk_revisions()]
    wanted = scripts.get_current_head() if revision == "head" else None if revision == "base" else revision
    with database.migrating() as connection:
        before = MigrationContext.configure(connection).get_current_revision()
        for each in (before, wanted):
            if each is not None and each not in known:
                raise StateError(
                    f"{database.name}: revision {each} is not one of this program's ({', '.join(known)})",
                    "use the program that made this schema, or a newer one",
                )
        config = Config()
        config.set_main_option("script_location", str(_FOLDER))
        config.attributes["connection"] = connection
        if wanted is not None and (before is None or known.index(wanted) <= known.index(before)):
            command.upgrade(config, wanted)
        else:
            command.downgrade(config, wanted or "base")
        _check_references(connection)
    return before


def _check_references(connection: Connection) -> None:
    """SQLite's foreign keys are off while tables are made anew."""
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        if broken:
            raise StateError(f"the migration would break references: {broken[:3]}", "report this")
