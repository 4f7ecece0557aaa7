"""Where a backup is restored to: what may be there before, and the files that come there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID

from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DBAPIError

from platform_server.backup.read import Contents
from platform_server.database import Database
from platform_server.errors import BackupError
from platform_server.sealing import read_key
from platform_server.state_folder import database_file, key_file, open_database
from platform_server.uploads import upload_name
from supply_chain.files import locked, sync_folder

_PART = ".part"
_ELSEWHERE = "name a folder and a database that nothing is in, or move away what is there"


def require_room(folder: Path, database: str | None, contents: Contents) -> None:
    """Raise BackupError when folder or database have something that the backup does not have.

    What the backup has may be there: a killed restore left it, and it is the same.
    """
    if folder.exists():
        for path in _entries(folder):
            if not _is_ours(path, folder, contents):
                raise BackupError(
                    f"{path}: expected a folder that nothing is in but the backup's own", _ELSEWHERE
                )
    if database is not None or database_file(folder).exists():
        with closing(open_database(folder, database)) as opened:
            _require_empty(opened)


def require_empty(connection: Connection, name: str) -> None:
    """Raise BackupError for a database with tables."""
    if tables := inspect(connection).get_table_names():
        raise BackupError(
            f"{name}: expected an empty database, found {len(tables)} tables ({tables[0]})", _ELSEWHERE
        )


def _require_empty(database: Database) -> None:
    try:
        with database.snapshot() as connection:
            require_empty(connection, database.name)
    except DBAPIError as error:
        raise database.explained(error) from None


def _entries(folder: Path) -> Iterator[Path]:
    try:
        for path in sorted(folder.iterdir()):
            if path.name == "uploads" and path.is_dir() and not path.is_symlink():
                yield from sorted(path.iterdir())
            else:
                yield path
    except OSError as error:
        raise BackupError(f"{folder}: {error.strerror or error}", "name a folder") from None


def _is_ours(path: Path, folder: Path, contents: Contents) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if path == key_file(folder):
        return read_key(path) == contents.key
    if path.parent == folder:
        file, key = database_file(folder).name, key_file(folder).name
        return path.name in {f"{key}{_PART}", file, *(f"{file}-{kind}" for kind in ("wal", "shm"))}
    return path.name.removesuffix(_PART) in {upload_name(each.id) for each in contents.manifest.uploads}


class Place:
    """The state folder that is being made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._uploads = folder / "uploads"
        self._made: list[Path] = []
        self._is_kept = False

    def prepare(self, key: bytes) -> None:
        """Make what a state folder has, but for the database."""
        if not self._uploads.exists():
            self._made.append(self._uploads)
            self._uploads.mkdir(mode=0o700)
        self._write(key_file(self.folder), (key,))
        file = database_file(self.folder)
        self._made += [
            path
            for path in (file, *(file.with_name(f"{file.name}-{kind}") for kind in ("wal", "shm")))
            if not path.exists()
        ]

    def upload(self, publication_id: UUID, chunks: Iterable[bytes]) -> None:
        """Write an uploaded image."""
        self._write(self._uploads / upload_name(publication_id), chunks)

    def keep(self) -> None:
        """Everything is on the disk and stays: the database may be committed."""
        sync_folder(self._uploads)
        sync_folder(self.folder)
        self._is_kept = True

    def undo(self) -> None:
        """Remove what was made here, unless it is kept."""
        if not self._is_kept:
            for path in reversed(self._made):
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink(missing_ok=True)

    def _write(self, path: Path, chunks: Iterable[bytes]) -> None:
        """A file that only its owner can read; it gets its name when it is on the disk."""
        part = path.with_name(f"{path.name}{_PART}")
        part.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if not path.exists():
                self._made.append(path)
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def placing(folder: Path, key: bytes) -> Iterator[Place]:
    """The folder, made and held against other restores while the block lasts, with the key in it. When the
    block raises, what was made is removed. Raises OSError.
    """
    is_new = not folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = Place(folder)
    with locked(folder, wait=False):
        try:
            place.prepare(key)
            yield place
        except BaseException:
            place.undo()
            if is_new and not any(folder.iterdir()):
                folder.rmdir()
            raise
