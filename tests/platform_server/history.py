"""A platform with a long history: node platforms, publications and events, inserted in bulk.

The same history at each size, so that pages of it can be compared. One platform, one status and one kind of
event have the oldest tenth and nothing since: who looks for them from the newest end passes all the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from uuid import UUID

from psycopg import sql
from sqlalchemy import Table, insert, select
from sqlalchemy.orm import Session

from platform_server.database import Database
from platform_server.events import Kind as EventKind
from platform_server.identifiers import new_id
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Account, Base, Event, NodePlatform, Publication

PLATFORMS = 10
# events that one thing caused
TOGETHER = 5
# of so many things one is the same long story
STORY = 10
_CHUNK = 10_000


@dataclass(frozen=True)
class History:
    """What pages can be asked for: ids from the oldest to the newest, and what else names rows."""

    platform: UUID
    old_platform: UUID
    publications: Sequence[UUID]
    events: Sequence[UUID]
    correlation: str
    story: str


def fill(opened: Platform, publications: int, events: int) -> History:
    """Write so much history into a new platform."""
    at = datetime.now(UTC)

    def prepare(session: Session) -> tuple[UUID, list[UUID]]:
        account = session.scalars(select(Account.id)).one()
        platforms = [
            NodePlatform(
                account_id=account, name=name, arch="amd64", trusted_registries=[],
                disk_image_retention_count=3, created_at=at, updated_at=at,
            )
            for name in ("old", *(f"debian-{number}" for number in range(PLATFORMS)))
        ]  # fmt: skip
        session.add_all(platforms)
        session.flush()
        return account, [each.id for each in platforms]

    account, (old, *platforms) = opened.database.write_now(prepare)
    images = [new_id() for _ in range(publications)]
    rows = (
        _publication(number, each, account, at, is_good=number >= publications // 10)
        | {"node_platform_id": old if number < publications // 10 else platforms[number % PLATFORMS]}
        for number, each in enumerate(images)
    )
    _write(opened.database, _table(Publication), rows)
    happened = [new_id() for _ in range(events)]
    story = str(new_id())
    things = [story if number % STORY == 0 else str(new_id()) for number in range(events // TOGETHER + 1)]
    told = (
        _event(number, each, account, things[number // TOGETHER], at)
        | ({"kind": EventKind.SECRET_ROTATED} if number < events // 10 else {})
        for number, each in enumerate(happened)
    )
    _write(opened.database, _table(Event), told)
    one = len(things) // 2 // STORY * STORY + 1
    return History(platforms[0], old, images, happened, things[one], story)


def _publication(number: int, id_: UUID, account: UUID, at: datetime, *, is_good: bool) -> dict[str, Any]:
    sha = hashlib.sha256(str(number).encode()).hexdigest()
    # What no sweep changes: nothing is published, and nothing was retired long ago.
    gone = Status.RETIRED if number // PLATFORMS % 10 == 0 else Status.PURGED
    status = gone if is_good else Status.FAILED
    return {
        "id": id_, "created_at": at, "account_id": account,
        "correlation_id": str(id_), "status": status, "arch": "amd64", "git_sha": sha[:40],
        "oci_ref": "registry.example/os/debian:13", "oci_digest": f"sha256:{sha}", "sha256": sha,
        "size_bytes": 400_000_000, "payload": {"platform_slug": "debian", "git_sha": sha[:40]},
        "cosign_verified": is_good, "attempt_count": 1,
        "certificate_identity": "https://git.example/org/os/.gitea/workflows/image.yml@refs/heads/main",
        "certificate_issuer": "https://git.example", "sbom_digest": f"sha256:{sha}",
        "provenance_digest": f"sha256:{sha}", "verifying_at": at,
        "verified_at": at if is_good else None, "published_at": at if is_good else None,
        "failed_at": None if is_good else at,
        "retired_at": at if status in (Status.RETIRED, Status.PURGED) else None,
        "purged_at": at if status is Status.PURGED else None,
        "error_message": None if is_good else "verification_failed: signature: no signature",
    }  # fmt: skip


def _event(number: int, id_: UUID, account: UUID, correlation: str, at: datetime) -> dict[str, Any]:
    kind = EventKind.PUBLISH_FAILED if number % 10 == 0 else EventKind.PUBLISHED
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return {
        "id": id_, "created_at": at, "account_id": account, "kind": kind, "severity": "low",
        "source": "worker", "correlation_id": correlation,
        "payload": {"publication_id": str(id_), "platform_name": "debian", "sha256": digest},
    }  # fmt: skip


def _write(database: Database, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    """Insert rows; afterwards a server's planner knows of them, as it does once it has looked around."""
    if database.server is None:
        with database.engine.begin() as connection:
            while chunk := list(islice(rows, _CHUNK)):
                connection.execute(insert(table), chunk)
        return
    columns, dialect = list(table.columns), database.engine.dialect
    made: list[Callable[[Any], Any]] = [
        each.type.dialect_impl(dialect).bind_processor(dialect) or _as_it_is for each in columns
    ]
    names = sql.SQL(", ").join(sql.Identifier(each.name) for each in columns)
    with database.server.connect() as connection:
        connection.execute("SET statement_timeout = 0")
        into = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), names)
        with connection.cursor().copy(into) as copy:
            for row in rows:
                copy.write_row([make(row.get(each.name)) for each, make in zip(columns, made, strict=True)])
        connection.commit()
        connection.autocommit = True
        connection.execute(sql.SQL("VACUUM ANALYZE {}").format(sql.Identifier(table.name)))


def _as_it_is(value: Any) -> Any:
    return value


def _table(of: type[Base]) -> Table:
    table = of.__table__
    assert isinstance(table, Table)
    return table
