"""The format of a backup: what its members are called, what its head and manifest say, and its limits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from platform_server.errors import BackupError

FORMAT = 1
HEAD, KEY, MANIFEST, SIGNATURE = "backup.json", "secrets.key", "manifest.json", "manifest.hmac"
# In bytes. Rows are cut into parts so that none has to be held whole; one row must fit into a part.
PART = 1 << 20
LARGEST_PART = 64 << 20
LARGEST_MANIFEST = 64 << 20

DAMAGED = "take another backup: nothing was restored"
# What is told while it lasts: one line of what was done.
Progress = Callable[[str], None]

_UPLOAD = re.compile(r"uploads/([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})\.tar")
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Read = TypeVar("_Read", bound=BaseModel)


class Kind(StrEnum):
    """What a column holds, on every database; `rows.py` says how it is written."""

    BINARY = "binary"
    BOOLEAN = "boolean"
    INTEGER = "integer"
    JSON = "json"
    TEXT = "text"
    TIME = "time"
    UUID = "uuid"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Part):
    """One column of a table."""

    name: _Name
    kind: Kind


class TableHead(_Part):
    """A table, and its columns in the order of each row's values."""

    name: _Name
    columns: tuple[Column, ...]


class Head(_Part):
    """The first member: what is needed to read the others."""

    format: int
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-z_]{1,64}$")]
    created_at: datetime
    has_key: bool
    tables: tuple[TableHead, ...]


class TableDigest(_Part):
    """How many rows a table has, in how many members, and the SHA-256 in hex of all its lines."""

    rows: int
    parts: int
    sha256: _Digest


class UploadDigest(_Part):
    """An uploaded image by its publication's id; size in bytes, SHA-256 in hex."""

    id: UUID
    size: int
    sha256: _Digest


class Manifest(_Part):
    """The last member but its signature: what all the others must be."""

    head_sha256: _Digest
    tables: dict[_Name, TableDigest]
    uploads: tuple[UploadDigest, ...]

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(each.rows for each in self.tables.values())


class _Version(BaseModel):
    format: int


def rows_name(table: str, number: int) -> str:
    """The member with a table's rows number `number`, from 0."""
    return f"rows/{table}/{number:08}.jsonl.gz"


def upload_member(publication_id: UUID) -> str:
    """The member with an uploaded image."""
    return f"uploads/{publication_id}.tar"


def upload_of(name: str) -> UUID | None:
    """Whose uploaded image a member is; None for a member that is none. Names are never used as paths."""
    found = _UPLOAD.fullmatch(name)
    return UUID(found[1]) if found else None


def signed(manifest: bytes) -> str:
    """The text that is signed with the platform's key."""
    return f"backup {hashlib.sha256(manifest).hexdigest()}"


def parse_head(content: bytes) -> Head:
    """The head. Raises BackupError, also for a format that this program does not know."""
    version = parsed(_Version, content, HEAD).format
    if version != FORMAT:
        raise BackupError(
            f"{HEAD}: expected format {FORMAT}, found {version}", "restore it with the program that made it"
        )
    head = parsed(Head, content, HEAD)
    names = [table.name for table in head.tables]
    if names != sorted(set(names)):
        raise BackupError(f"{HEAD}: tables: expected each once, by name, found {names}", DAMAGED)
    for table in head.tables:
        columns = [column.name for column in table.columns]
        if "id" not in columns or len(columns) != len(set(columns)):
            raise BackupError(f"{HEAD}: {table.name}: expected columns, each once, with id", DAMAGED)
    return head


def parsed(model: type[_Read], content: bytes, name: str) -> _Read:
    """A member of JSON as what it says. Raises BackupError."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise BackupError(f"{name}: {field or 'JSON'}: {first['msg']}", DAMAGED) from None
