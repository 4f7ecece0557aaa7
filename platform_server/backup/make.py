"""Make a backup, while the platform is served or not.

1. Every uploaded image is opened: what is deleted from now on can still be read.
2. One state of the database is read, which later transactions do not change: its rows are written, and it
   says which uploads they need. Uploads that came between 1 and 2 are opened now.
3. The reading transaction ends; the uploads are written.
4. What all of it is, is written and signed with the key; the file gets its name.
5. The state folder gets a mark of when that was, if nothing is missing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from platform_server.backup import format
from platform_server.backup.archive import Writer, writing
from platform_server.backup.format import Head, Manifest, Progress, TableDigest, UploadDigest
from platform_server.backup.rows import Rows, heads_of
from platform_server.errors import BackupError
from platform_server.migrations.run import newest, revision_of
from platform_server.sealing import read_key
from platform_server.state_folder import Platform, backup_mark, key_file
from platform_server.states import KEPT, OPEN, Status
from platform_server.tables import Base, Publication
from platform_server.upload_files import kept
from supply_chain.files import open_regular

log = logging.getLogger(__name__)

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Made:
    """What a backup holds. `warnings`: uploads that should be there and are not, or not as they came."""

    manifest: Manifest
    warnings: tuple[str, ...]


def backup(platform: Platform, path: Path, *, with_key: bool, told: Progress) -> Made:
    """Write a backup of the platform to the new file `path`; `told` gets a line for each part that is done.

    Raises BackupError, and then leaves nothing; Unavailable or StateError when the database fails.
    """
    key = read_key(key_file(platform.folder))
    try:
        with ExitStack() as stack, writing(path) as archive:
            uploads = _Opened(platform, stack)
            uploads.open_all()  # 1
            with platform.database.snapshot() as connection:  # 2
                head = Head(
                    format=format.FORMAT,
                    revision=_revision(connection, platform.database.name),
                    created_at=platform.clock(),
                    has_key=with_key,
                    tables=heads_of(Base.metadata),
                )
                needed = _needed(connection)
                uploads.open_all()
                content = head.model_dump_json(indent=1).encode()
                archive.add(format.HEAD, content)
                if with_key:
                    archive.add(format.KEY, key)
                tables = _tables(archive, connection, head, told)
            warnings = list[str]()
            written = tuple(_write_uploads(archive, uploads, needed, warnings, told))  # 3
            manifest = Manifest(
                head_sha256=hashlib.sha256(content).hexdigest(), tables=tables, uploads=written
            )
            last = manifest.model_dump_json(indent=1).encode()
            archive.add(format.MANIFEST, last)
            archive.add(format.SIGNATURE, platform.sealer.sign(format.signed(last)).encode())  # 4
    except DBAPIError as error:
        raise platform.database.explained(error) from None
    if not warnings:
        _mark(platform, head.created_at)
    return Made(manifest, tuple(warnings))


def _mark(platform: Platform, at: datetime) -> None:
    """Let the processes that serve the platform say since when it has a backup."""
    path = backup_mark(platform.folder)
    try:
        path.touch(0o600)
        os.utime(path, (at.timestamp(), at.timestamp()))
    except OSError as error:
        log.warning("%s: %s: nobody who watches the platform sees this backup", path, error.strerror)


def _revision(connection: Connection, name: str) -> str:
    """This program's, which a server may work without: of another schema it would leave something out."""
    found = revision_of(connection)
    if found != newest():
        raise BackupError(
            f"{name}: expected schema {newest()}, found {found}", "back up with the program that migrated it"
        )
    return newest()


@dataclass
class _Opened:
    """The uploaded images, open."""

    platform: Platform
    stack: ExitStack
    files: dict[UUID, BinaryIO] = field(default_factory=dict)

    def open_all(self) -> None:
        """Open those that are not open yet."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        for publication_id, path in kept(self.platform.uploads).items():
            if publication_id not in self.files:
                try:
                    file = open_regular(path)
                except FileNotFoundError:
                    # deleted since the folder was listed
                    continue
                except OSError as error:
                    raise BackupError(
                        f"{path}: {error.strerror or error}", "every upload is held open: see ulimit -n"
                    ) from None
                self.files[publication_id] = self.stack.enter_context(file)


@dataclass(frozen=True)
class _Needed:
    """An upload by its SHA-256 in hex; `lost`: what to say when it is not there."""

    sha256: str
    lost: str | None


def _needed(connection: Connection) -> Mapping[UUID, _Needed]:
    """What was uploaded for publications that are kept, or not decided yet."""
    found = connection.execute(
        select(Publication.id, Publication.status, Publication.upload_sha256, Publication.published_at)
        .where(
            Publication.upload_sha256.is_not(None),
            Publication.purge_started_at.is_(None),
            Publication.status.in_(OPEN | KEPT),
        )
        .order_by(Publication.id)
    )
    needed: dict[UUID, _Needed] = {}
    for row in found:
        # what is awaited may not have come; what never was published may be deleted already
        must = row.status is Status.VERIFYING or row.published_at is not None
        lost = f"publication {row.id} is {row.status}: its upload is not there" if must else None
        needed[row.id] = _Needed(row.upload_sha256, lost)
    return needed


def _tables(archive: Writer, connection: Connection, head: Head, told: Progress) -> dict[str, TableDigest]:
    digests: dict[str, TableDigest] = {}
    for each in head.tables:

        def ended(digest: TableDigest, name: str = each.name) -> None:
            digests[name] = digest

        parts = Rows(each).parts(connection, ended)
        for number, part in enumerate(parts):
            archive.add(format.rows_name(each.name, number), part)
        told(f"{each.name}: {digests[each.name].rows} rows")
    return digests


def _write_uploads(
    archive: Writer,
    uploads: _Opened,
    needed: Mapping[UUID, _Needed],
    warnings: list[str],
    told: Progress,
) -> Iterator[UploadDigest]:
    for publication_id, wanted in needed.items():
        file = uploads.files.get(publication_id)
        if file is None:
            if wanted.lost is not None:
                warnings.append(wanted.lost)
            continue
        size, sha256 = os.fstat(file.fileno()).st_size, hashlib.sha256()
        archive.stream(format.upload_member(publication_id), size, _hashed(file, sha256))
        if sha256.hexdigest() != wanted.sha256:
            warnings.append(f"publication {publication_id}: its upload is not the one that came")
        told(f"upload {publication_id}: {size} bytes")
        yield UploadDigest(id=publication_id, size=size, sha256=sha256.hexdigest())


def _hashed(file: BinaryIO, sha256: hashlib._Hash) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        sha256.update(chunk)
        yield chunk
