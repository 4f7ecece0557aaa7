"""Read a backup from its beginning to its end, and refuse whatever is not as it was made.

1. The head is of a format and schema that this program knows.
2. The key is the backup's own, or the one that was named; where both are there, they are the same.
3. Members come in the order in which they are made, under the names that they then have; none is longer than
   it may be, and every row is one of its table.
4. The manifest is signed with the key.
5. Every member is what the manifest says: none is missing, none is another one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol
from uuid import UUID

from platform_server.backup import format
from platform_server.backup.archive import Reader
from platform_server.backup.format import (
    DAMAGED,
    LARGEST_PART,
    PART,
    Head,
    Manifest,
    Progress,
    TableDigest,
    UploadDigest,
)
from platform_server.backup.rows import Rows, expand
from platform_server.errors import BackupError, shown
from platform_server.migrations.run import known_revisions
from platform_server.sealing import KEY_BYTES, Sealer

_BATCH = 500


@dataclass(frozen=True)
class Contents:
    """What a backup holds beside its rows and uploads."""

    head: Head
    key: bytes
    manifest: Manifest


class Taker(Protocol):
    """What is done with a backup's contents as they are read: only the end of it says that they hold."""

    def rows(self, table: Rows, batch: list[dict[str, Any]]) -> None:
        """Some rows of a table."""

    def upload(self, publication_id: UUID, chunks: Iterator[bytes]) -> None:
        """An uploaded image, all of whose chunks must be taken."""


class Checker:
    """Takes nothing: for a look at whether a backup holds."""

    def rows(self, table: Rows, batch: list[dict[str, Any]]) -> None:
        """Nothing to do."""

    def upload(self, publication_id: UUID, chunks: Iterator[bytes]) -> None:
        """Read them."""
        for _ in chunks:
            pass


def read(file: BinaryIO, named: bytes | None, taker: Taker, told: Progress) -> Contents:
    """Read the backup and hand its contents over; `named` is the key that the operator named, or None.

    Raises BackupError at the first thing that is not as it should be; what was handed over counts for
    nothing then.
    """
    file.seek(0)
    reader = Reader(file)
    first = _content(reader, format.HEAD, PART)
    head = format.parse_head(first)  # 1
    if head.revision not in (known := known_revisions()):
        raise BackupError(
            f"{format.HEAD}: schema {head.revision} is not one of this program's ({', '.join(known)})",
            "restore it with the program that made it, or a newer one",
        )
    reader.next()
    key = _key(reader, head, named)  # 2
    tables: dict[str, TableDigest] = {}
    for each in head.tables:  # 3
        tables[each.name] = _rows(reader, Rows(each), taker)
        told(f"{each.name}: {tables[each.name].rows} rows")
    uploads = tuple(_uploads(reader, taker, told))
    last = _content(reader, format.MANIFEST, format.LARGEST_MANIFEST)
    reader.next()
    signature = _content(reader, format.SIGNATURE, PART)
    reader.end()
    if not Sealer(key).is_signed(format.signed(last), signature.decode(errors="replace")):  # 4
        raise BackupError(
            f"{format.MANIFEST}: expected it signed with this platform's key, found another signature",
            "somebody changed it, or --key names another platform's key: nothing was restored",
        )
    manifest = format.parsed(Manifest, last, format.MANIFEST)
    found = Manifest(head_sha256=hashlib.sha256(first).hexdigest(), tables=tables, uploads=uploads)
    if found != manifest:  # 5
        raise BackupError(_difference(found, manifest), DAMAGED)
    return Contents(head, key, manifest)


def _content(reader: Reader, name: str, limit: int) -> bytes:
    if reader.name != name:
        raise BackupError(f"expected {name}, found {shown(reader.name)}", DAMAGED)
    return reader.content(limit)


def _key(reader: Reader, head: Head, named: bytes | None) -> bytes:
    if not head.has_key:
        if named is None:
            raise BackupError(
                "the backup was made without the key that opens its secrets",
                "name the key with --key FILE: secrets.key of the platform's state folder",
            )
        return named
    key = _content(reader, format.KEY, KEY_BYTES)
    reader.next()
    if len(key) != KEY_BYTES:
        raise BackupError(f"{format.KEY}: expected {KEY_BYTES} bytes, found {len(key)}", DAMAGED)
    if named is not None and not hmac.compare_digest(named, key):
        raise BackupError(
            f"{format.KEY}: expected the key that --key names, found another one",
            "it is another platform's backup, or somebody changed it",
        )
    return key


def _rows(reader: Reader, table: Rows, taker: Taker) -> TableDigest:
    rows, number, sha256 = 0, 0, hashlib.sha256()
    while reader.name == format.rows_name(table.head.name, number):
        lines = expand(reader.name, reader.content(LARGEST_PART))
        sha256.update(lines)
        batch: list[dict[str, Any]] = []
        for line in lines[:-1].split(b"\n"):
            batch.append(table.decode(line))
            rows += 1
            if len(batch) == _BATCH:
                taker.rows(table, batch)
                batch = []
        if batch:
            taker.rows(table, batch)
        number += 1
        reader.next()
    return TableDigest(rows=rows, parts=number, sha256=sha256.hexdigest())


def _uploads(reader: Reader, taker: Taker, told: Progress) -> Iterator[UploadDigest]:
    before = None
    while (publication_id := format.upload_of(reader.name)) is not None:
        if before is not None and publication_id <= before:
            raise BackupError(f"{reader.name}: expected uploads in order, found it later", DAMAGED)
        before, size, sha256 = publication_id, reader.size, hashlib.sha256()
        taker.upload(publication_id, _hashed(reader, sha256))
        told(f"upload {publication_id}: {size} bytes")
        yield UploadDigest(id=publication_id, size=size, sha256=sha256.hexdigest())
        reader.next()


def _hashed(reader: Reader, sha256: hashlib._Hash) -> Iterator[bytes]:
    for chunk in reader.chunks():
        sha256.update(chunk)
        yield chunk


def _difference(found: Manifest, manifest: Manifest) -> str:
    """The first member that is another one than the manifest says."""
    for name in sorted(found.tables.keys() | manifest.tables.keys()):
        one, other = manifest.tables.get(name), found.tables.get(name)
        if one != other:
            return f"{format.MANIFEST}: {name}: expected {one or 'nothing'}, found {other or 'nothing'}"
    if found.head_sha256 != manifest.head_sha256:
        return f"{format.HEAD}: expected what {format.MANIFEST} says, found another one"
    theirs, ours = set(manifest.uploads), set(found.uploads)
    for upload in sorted(theirs ^ ours, key=lambda each: each.id):
        return f"{format.MANIFEST}: upload {upload.id}: expected what it says, found another or none"
    return f"{format.MANIFEST}: expected uploads in order, found them in another"
