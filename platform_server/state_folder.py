"""The state folder: the key that seals secrets, uploads, and `platform.db` unless the database is elsewhere.
It is its owner's alone.

`database` is the URL of a PostgreSQL database; None is the folder's own, on SQLite. Servers that share a
database share the folder's key and uploads as well.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import webhooks
from platform_server.accounts import first_account
from platform_server.database import Database
from platform_server.errors import Conflict, StateError
from platform_server.identifiers import continue_after
from platform_server.migrations.run import migrate, require_compatible
from platform_server.postgres import Server
from platform_server.sealing import Sealer, make_key, read_key
from platform_server.settings import Settings
from platform_server.tables import Event, Publication


def now() -> datetime:
    """The time of this machine, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Platform:
    """An open platform: what every part of it works with."""

    folder: Path
    database: Database
    sealer: Sealer
    settings: Settings = field(default_factory=Settings)
    clock: Callable[[], datetime] = now

    @property
    def uploads(self) -> Path:
        """Where uploaded images are."""
        return self.folder / "uploads"


def initialise(folder: Path, at: datetime, database: str | None = None) -> str:
    """Make a platform in `folder`; the administrator's token, which is nowhere else.

    What a killed run left is completed. Raises StateError when there is a platform already.
    """
    if database is not None:
        # Nothing is made for a database that can't be had.
        Server(database).require()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_own(folder)
        (folder / "uploads").mkdir(mode=0o700, exist_ok=True)
        make_key(key_file(folder))
    except OSError as error:
        raise StateError(
            f"{folder}: {error.strerror or error}", "name a folder that can be written"
        ) from None
    opened = open_database(folder, database)
    try:
        migrate(opened)
        return opened.write_now(lambda session: first_account(session, at))
    except Conflict as error:
        raise StateError(f"{folder}: {error.what}", error.hint) from None
    finally:
        opened.close()


def open_platform(
    folder: Path,
    settings: Settings | None = None,
    clock: Callable[[], datetime] = now,
    *,
    database: str | None = None,
) -> Platform:
    """The platform in `folder`. Raises StateError when there is none, its database can't be had, or its
    schema is another one.
    """
    _require(folder, database)
    sealer = Sealer(read_key(key_file(folder)))
    opened = open_database(folder, database)
    try:
        require_compatible(opened)
        if not opened.read_now(lambda session: webhooks.has_key(session, sealer)):
            raise StateError(
                f"{key_file(folder)}: not the key that {opened.name} was used with",
                "put back the key of this database: all its servers share one, and a backup has it",
            )
        opened.read_now(_continue)
    except BaseException:
        opened.close()
        raise
    return Platform(folder, opened, sealer, settings or Settings(), clock)


def _continue(session: Session) -> None:
    """Lists are in the order of ids, and what comes now is the newest."""
    for table in (Event, Publication):
        newest = session.scalar(select(table.id).order_by(table.id.desc()).limit(1))
        if newest is not None:
            continue_after(newest)


def migrate_folder(folder: Path, revision: str, database: str | None = None) -> str | None:
    """Migrate the platform in `folder`; the revision before."""
    _require(folder, database)
    opened = open_database(folder, database)
    try:
        return migrate(opened, revision)
    finally:
        opened.close()


def _require_own(folder: Path) -> None:
    """Raise StateError for a folder in which others can put another key or database. Raises OSError."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o022:
        raise StateError(
            f"{folder}: expected a folder that only its owner can write, found mode {mode:04o}",
            f"chmod 0700 {folder}, and see that what is in it is yours",
        )


def _require(folder: Path, database: str | None) -> None:
    """Raise StateError where there is no platform, others can write it, or its server does not answer."""
    try:
        _require_own(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StateError(f"{folder}: {error.strerror or error}", "name a folder that can be read") from None
    if database is None and not database_file(folder).is_file():
        raise StateError(
            f"{folder}: no platform's state",
            f"disk-image platform init --state {folder}, or name its database with --database",
        )
    if database is not None:
        read_key(key_file(folder))
        Server(database).require()


def open_database(folder: Path, database: str | None) -> Database:
    """The folder's database or the one elsewhere, whatever is in it. SQLite's file is made."""
    if database is not None:
        return Database(database)
    file = database_file(folder)
    # SQLite would make it readable for everyone, by the umask. One that is there is left alone: to close it
    # would end the locks that this process has on it (SQLite, "How To Corrupt", 2.2).
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return Database(f"sqlite:///{file.absolute()}")


def database_file(folder: Path) -> Path:
    """The folder's own database."""
    return folder / "platform.db"


def backup_mark(folder: Path) -> Path:
    """An empty file whose time is that of the newest backup that was made of the folder's platform."""
    return folder / "last-backup"


def key_file(folder: Path) -> Path:
    """The key that seals secrets."""
    return folder / "secrets.key"
