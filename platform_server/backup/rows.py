"""Rows as lines of JSON: an array each, of the columns' values, the same whichever database they are from.

    uuid     its 36 characters           time   ISO 8601 in UTC, with microseconds
    binary   base64                      json, text, integer, boolean   as JSON has them

Rows are in the order of their ids, which both databases agree on. So two databases have the same rows
exactly when their tables have the same digests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection, MetaData
from sqlalchemy.types import TypeEngine

from platform_server.backup.format import DAMAGED, LARGEST_PART, PART, Column, Kind, TableDigest, TableHead
from platform_server.errors import BackupError, shown
from platform_server.tables import UtcTime

# How many rows are held at a time.
_BATCH = 200
_GZIP = 31
_DUMPS = json.JSONEncoder(separators=(",", ":")).encode

# The first that a column's type is an instance of.
_KINDS: Sequence[tuple[type[TypeEngine[Any]], Kind]] = (
    (sa.Uuid, Kind.UUID),
    (sa.DateTime, Kind.TIME),
    (sa.JSON, Kind.JSON),
    (sa.LargeBinary, Kind.BINARY),
    (sa.Boolean, Kind.BOOLEAN),
    (sa.Integer, Kind.INTEGER),
    (sa.String, Kind.TEXT),
)
_TYPES: Mapping[Kind, TypeEngine[Any]] = {
    Kind.UUID: sa.Uuid(),
    Kind.TIME: UtcTime(),
    Kind.JSON: sa.JSON(none_as_null=True),
    Kind.BINARY: sa.LargeBinary(),
    Kind.BOOLEAN: sa.Boolean(),
    Kind.INTEGER: sa.BigInteger(),
    Kind.TEXT: sa.Text(),
}


def _time(value: str) -> datetime:
    found = datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError("a time without a zone")
    return found


def _binary(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def _is(kind: type[Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"not of {kind}")
        return value

    return check


_ENCODERS: Mapping[Kind, Callable[[Any], Any]] = {
    Kind.UUID: str,
    Kind.TIME: lambda value: value.astimezone(UTC).isoformat(timespec="microseconds"),
    Kind.BINARY: lambda value: base64.b64encode(value).decode(),
}
_DECODERS: Mapping[Kind, Callable[[Any], Any]] = {
    Kind.UUID: UUID,
    Kind.TIME: _time,
    Kind.JSON: lambda value: value,
    Kind.BINARY: _binary,
    Kind.BOOLEAN: _is(bool),
    Kind.INTEGER: _is(int),
    Kind.TEXT: _is(str),
}


def heads_of(metadata: MetaData) -> tuple[TableHead, ...]:
    """Every table by name."""
    return tuple(
        TableHead(
            name=name,
            columns=tuple(Column(name=each.name, kind=_kind(each.type)) for each in table.columns),
        )
        for name, table in sorted(metadata.tables.items())
    )


def _kind(of: TypeEngine[Any]) -> Kind:
    plain = of.impl_instance if isinstance(of, sa.types.TypeDecorator) else of
    return next(kind for types, kind in _KINDS if isinstance(plain, types))


@dataclass(frozen=True)
class Rows:
    """One table, as its head says."""

    head: TableHead

    @property
    def table(self) -> sa.TableClause:
        """What statements are made of."""
        return sa.table(
            self.head.name, *(sa.column(each.name, _TYPES[each.kind]) for each in self.head.columns)
        )

    def lines(self, connection: Connection) -> Iterator[bytes]:
        """A line for each row that is there, by id; few are held at a time."""
        encoders = [_ENCODERS.get(each.kind) for each in self.head.columns]
        table = self.table
        result = connection.execute(
            sa.select(table).order_by(table.c.id), execution_options={"yield_per": _BATCH}
        )
        for row in result:
            values = [
                value if encode is None or value is None else encode(value)
                for encode, value in zip(encoders, row, strict=True)
            ]
            yield _DUMPS(values).encode() + b"\n"

    def digest(self, connection: Connection) -> tuple[int, str]:
        """Number of rows that are there, and the SHA-256 in hex of their lines."""
        rows, sha256 = 0, hashlib.sha256()
        for line in self.lines(connection):
            rows += 1
            sha256.update(line)
        return rows, sha256.hexdigest()

    def parts(self, connection: Connection, ended: Callable[[TableDigest], None]) -> Iterator[bytes]:
        """The lines in parts, compressed; at the end `ended` is told what they were."""
        rows, parts, sha256, part = 0, 0, hashlib.sha256(), bytearray()
        for line in self.lines(connection):
            if len(line) > LARGEST_PART - PART:
                raise BackupError(f"{self.head.name}: a row has {len(line)} bytes", "report this")
            rows += 1
            part += line
            if len(part) >= PART:
                sha256.update(part)
                parts += 1
                yield _compress(part)
                part.clear()
        if part:
            sha256.update(part)
            parts += 1
            yield _compress(part)
        ended(TableDigest(rows=rows, parts=parts, sha256=sha256.hexdigest()))

    def decode(self, line: bytes) -> dict[str, Any]:
        """The row of a line, by columns. Raises BackupError."""
        columns = self.head.columns
        try:
            values = json.loads(line)
            if not isinstance(values, list) or len(values) != len(columns):
                raise ValueError(f"not an array of {len(columns)}")
            return {
                column.name: None if value is None else _DECODERS[column.kind](value)
                for column, value in zip(columns, values, strict=True)
            }
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            raise BackupError(
                f"{self.head.name}: expected a row, found {shown(line.decode(errors='replace'))}", DAMAGED
            ) from None

    def insert(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows as they are."""
        connection.execute(sa.insert(self.table), rows)


def expand(name: str, content: bytes) -> bytes:
    """The lines of a part. Raises BackupError when they are more than a part may have."""
    gzip = zlib.decompressobj(wbits=_GZIP)
    try:
        lines = gzip.decompress(content, LARGEST_PART)
    except zlib.error:
        raise BackupError(f"{name}: expected gzip, found something else", DAMAGED) from None
    if not gzip.eof or gzip.unused_data:
        what = f"one gzip member of at most {LARGEST_PART} bytes"
        raise BackupError(f"{name}: expected {what}, found another", DAMAGED)
    if not lines.endswith(b"\n"):
        raise BackupError(f"{name}: expected whole lines, found a part of one", DAMAGED)
    return lines


def _compress(part: bytes | bytearray) -> bytes:
    return zlib.compress(part, 1, _GZIP)
