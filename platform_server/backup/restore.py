"""Restore a backup into a place where there is no platform, whichever database it was made of.

1. The backup is read to its end: one that is not whole, or not as it was made, changes nothing.
2. The folder has nothing in it that the backup does not have: what a killed restore of it left may be there.
3. The key is written.
4. In one transaction: the database is empty, and gets the schema of the backup, its rows and, while they are
   read, the uploads that belong to them; what was read was the same as in 1.
5. Every row is read back from the database, and is what the backup says; every reference leads somewhere.
6. The schema is brought forward to this program's, and the transaction committed.

The commit makes the platform: who is killed before has none, and restores again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from platform_server import postgres
from platform_server.backup.archive import opened
from platform_server.backup.format import DAMAGED, HEAD, Progress
from platform_server.backup.place import Place, placing, require_empty, require_room
from platform_server.backup.read import Checker, Contents, read
from platform_server.backup.references import without_references
from platform_server.backup.rows import Rows
from platform_server.database import Database
from platform_server.errors import BackupError
from platform_server.migrations.run import check_references, migrate_in
from platform_server.postgres import Server
from platform_server.sealing import read_key
from platform_server.state_folder import open_database

_REVISION = "alembic_version"


def restore(
    path: Path,
    folder: Path,
    database: str | None,
    *,
    key: Path | None,
    dry_run: bool,
    told: Progress,
) -> Contents:
    """Make the platform of the backup `path` in `folder`, and in `database` if it is elsewhere; `key` is a
    file with the key, for a backup that has none or to know that it is this platform's.

    With `dry_run` the backup and the place are looked at and nothing is changed. Raises BackupError or
    StateError, and then leaves nothing.
    """
    named = None if key is None else read_key(key)
    if database is not None:
        Server(database).require()
    with opened(path) as file:
        told("checking the backup")
        contents = read(file, named, Checker(), told)  # 1
        require_room(folder, database, contents)  # 2
        if dry_run:
            return contents
        told("restoring")
        try:
            with placing(folder, contents.key) as place:  # 3
                target = open_database(folder, database)
                try:
                    _restore(_Restore(target, file, named, contents, place, told))
                finally:
                    target.close()
        except BlockingIOError:
            raise BackupError(f"{folder}: another restore is at work there", "wait until it ends") from None
        except OSError as error:
            raise BackupError(
                f"{folder}: {error.strerror or error}", "name a folder that can be written, with room"
            ) from None
    return contents


@dataclass(frozen=True)
class _Restore:
    """What a restore works with."""

    database: Database
    file: BinaryIO
    named: bytes | None
    contents: Contents
    place: Place
    told: Progress


def _restore(job: _Restore) -> None:
    try:
        with job.database.migrating() as connection:
            _fill(connection, job)
            job.place.keep()
    except (IntegrityError, DataError) as error:
        # the rest of what a server says may quote the row, with its secrets
        said = postgres.primary(error) if job.database.server else str(error.orig)
        raise BackupError(
            f"{job.database.name}: a row of the backup can't be kept there: {said}", "nothing was restored"
        ) from None
    except DBAPIError as error:
        raise job.database.explained(error) from None


def _fill(connection: Connection, job: _Restore) -> None:
    head, name = job.contents.head, job.database.name
    if connection.dialect.name == "postgresql":
        # Uploads are written between two statements.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    require_empty(connection, name)  # 4
    migrate_in(connection, name, head.revision)
    tables = [Rows(each) for each in head.tables]
    _require_schema(connection, tables)
    with without_references(connection):
        again = read(job.file, job.named, _Taker(connection, job.place), job.told)
    if again != job.contents:
        raise BackupError("the backup changed while it was read", "restore a copy that nobody writes to")
    check_references(connection)  # 5
    for table in tables:
        expected = job.contents.manifest.tables[table.head.name]
        found = table.digest(connection)
        if found != (expected.rows, expected.sha256):
            raise BackupError(
                f"{name}: {table.head.name}: expected {expected.rows} rows with SHA-256 {expected.sha256}, "
                f"read back {found[0]} with {found[1]}",
                DAMAGED,
            )
    job.told("read back: every row is as in the backup")
    migrate_in(connection, name)  # 6


class _Taker:
    """Puts what is read where it belongs."""

    def __init__(self, connection: Connection, place: Place) -> None:
        self._connection = connection
        self._place = place

    def rows(self, table: Rows, batch: list[dict[str, Any]]) -> None:
        """Into the database."""
        table.insert(self._connection, batch)

    def upload(self, publication_id: UUID, chunks: Iterator[bytes]) -> None:
        """Into the folder."""
        self._place.upload(publication_id, chunks)


def _require_schema(connection: Connection, tables: list[Rows]) -> None:
    """The backup's tables and columns are those of the revision that it names."""
    seen = inspect(connection)
    expected = {
        name: {column["name"] for column in seen.get_columns(name)}
        for name in seen.get_table_names()
        if name != _REVISION
    }
    found = {table.head.name: {column.name for column in table.head.columns} for table in tables}
    for name in sorted(expected.keys() | found.keys()):
        one, other = expected.get(name), found.get(name)
        if one != other:
            raise BackupError(
                f"{HEAD}: table {name}: expected columns {sorted(one or ())}, found {sorted(other or ())}",
                DAMAGED,
            )
