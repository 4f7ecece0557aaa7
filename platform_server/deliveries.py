"""The rows that webhooks' deliveries read and write, by statements that are built once and serve many
deliveries at a time.

This is the path that every delivery takes: through the ORM it would cost four times as much.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    Connection,
    Row,
    Select,
    bindparam,
    insert,
    or_,
    select,
    union_all,
    update,
)

from platform_server.identifiers import new_id
from platform_server.states import KEPT, OPEN, Status
from platform_server.tables import Delivery, Job, NodePlatform, Publication, Webhook

AnyRow: TypeAlias = Row[*tuple[Any, ...]]

_webhooks = Webhook.__table__
_platforms = NodePlatform.__table__
_deliveries = Delivery.__table__
_publications = Publication.__table__


def _any(name: str) -> BindParameter[Any]:
    """A parameter that is a list."""
    return bindparam(name, expanding=True)


_FIND = select(
    _webhooks.c.id,
    _webhooks.c.status,
    _webhooks.c.secret,
    _webhooks.c.previous_secret,
    _webhooks.c.previous_until,
    _webhooks.c.plain_signatures,
).where(_webhooks.c.id.in_(_any("webhooks")))

_COUNT = (
    update(Webhook)
    .where(_webhooks.c.id == bindparam("webhook"))
    .values(received_count=_webhooks.c.received_count + bindparam("more"), last_received_at=bindparam("at"))
)

_PLATFORMS = (
    select(
        _webhooks.c.id.label("webhook_id"),
        _webhooks.c.account_id,
        _platforms.c.id,
        _platforms.c.name,
        _platforms.c.arch,
    )
    .join(_platforms, _platforms.c.account_id == _webhooks.c.account_id)
    .where(_webhooks.c.id.in_(_any("webhooks")), _platforms.c.name.in_(_any("names")))
)

_EARLIER = select(
    _deliveries.c.id,
    _deliveries.c.webhook_id,
    _deliveries.c.delivery_key,
    _deliveries.c.body_sha256,
    _deliveries.c.publication_id,
    _deliveries.c.created_at,
    _publications.c.status,
    _publications.c.duplicate_of_id,
    _publications.c.correlation_id,
).join(_publications, _publications.c.id == _deliveries.c.publication_id)
_BY_ID = _EARLIER.where(
    _deliveries.c.webhook_id.in_(_any("webhooks")), _deliveries.c.delivery_key.in_(_any("keys"))
)


@cache
def _by_body(count: int) -> Select[*tuple[Any, ...]]:
    """The last delivery of each of so many bodies, however many of one there are."""
    latest = (
        select(_deliveries.c.id)
        .where(
            _deliveries.c.webhook_id == bindparam(f"webhook_{each}"),
            _deliveries.c.body_sha256 == bindparam(f"body_{each}"),
        )
        .order_by(_deliveries.c.created_at.desc())
        .limit(1)
        .subquery()
        for each in range(count)
    )
    return _EARLIER.where(_deliveries.c.id.in_(union_all(*(select(each.c.id) for each in latest))))


# `status` for the index, however much has failed; what was never published does not count either.
_ALIKE = select(
    _publications.c.id,
    _publications.c.node_platform_id,
    _publications.c.arch,
    _publications.c.status,
    _publications.c.git_sha,
    _publications.c.oci_digest,
    _publications.c.published_at,
    _publications.c.duplicate_of_id,
    _publications.c.correlation_id,
).where(
    _publications.c.node_platform_id.in_(_any("platforms")),
    _publications.c.status.in_(sorted(OPEN | KEPT | {Status.PURGED})),
    or_(_publications.c.status.in_(sorted(OPEN)), _publications.c.published_at.is_not(None)),
)
_OF_COMMITS = _ALIKE.where(_publications.c.git_sha.in_(_any("commits")))
_OF_IMAGES = _ALIKE.where(_publications.c.oci_digest.in_(_any("digests")))

_PUBLISH = insert(Publication)
_ENQUEUE = insert(Job)
_REMEMBER = insert(Delivery)
_REMEMBER_AGAIN = (
    update(Delivery)
    .where(_deliveries.c.id == bindparam("delivery"))
    .values(publication_id=bindparam("publication"), created_at=bindparam("at"))
)


@dataclass(frozen=True, slots=True)
class Key:
    """What makes two deliveries of one webhook the same: the id that came with it, else its body."""

    webhook_id: UUID
    identifier: str | None
    body_sha256: str

    @property
    def text(self) -> str:
        """As it is kept."""
        return f"id:{self.identifier}" if self.identifier is not None else f"body:{self.body_sha256}"


@dataclass(frozen=True, slots=True)
class Image:
    """What a delivery reports: a commit or a manifest's digest, or both, for one platform."""

    platform_id: UUID
    arch: str
    git_sha: str | None
    digest: str | None


@dataclass(frozen=True, slots=True)
class Remembered:
    """A delivery to remember, and the row that it takes the place of."""

    key: Key
    before: AnyRow | None
    publication_id: UUID


def find_webhooks(connection: Connection, ids: Collection[UUID]) -> Mapping[UUID, AnyRow]:
    """The webhooks' columns that checking a signature needs."""
    return {row.id: row for row in connection.execute(_FIND, {"webhooks": sorted(ids)})}


def count(connection: Connection, received: Mapping[UUID, int], at: datetime) -> None:
    """Note how many each webhook received; they receive nothing else until the transaction ends."""
    # in one order, so that no two transactions wait for each other
    counts = [{"webhook": each, "more": received[each], "at": at} for each in sorted(received)]
    connection.execute(_COUNT, counts)


def find_platforms(
    connection: Connection, wanted: Collection[tuple[UUID, str]]
) -> Mapping[tuple[UUID, str], AnyRow]:
    """By webhook and name: account_id, id and arch of the platform of that name in the webhook's account."""
    if not wanted:
        return {}
    webhooks, names = ({each[part] for each in wanted} for part in (0, 1))
    found = connection.execute(_PLATFORMS, {"webhooks": sorted(webhooks), "names": sorted(names)})
    return {(row.webhook_id, row.name): row for row in found}


def earlier(connection: Connection, keys: Collection[Key]) -> Mapping[Key, AnyRow]:
    """The last deliveries that may be the same: by the id; without one, by the body, whatever its form."""
    by_id = {(key.webhook_id, key.text): key for key in keys if key.identifier is not None}
    by_body = {(key.webhook_id, key.body_sha256): key for key in keys if key.identifier is None}
    found: dict[Key, AnyRow] = {}
    if by_id:
        webhooks, texts = ({each[part] for each in by_id} for part in (0, 1))
        for row in connection.execute(_BY_ID, {"webhooks": sorted(webhooks), "keys": sorted(texts)}):
            # each id is looked for at every webhook of the others
            if (row.webhook_id, row.delivery_key) in by_id:
                found[by_id[row.webhook_id, row.delivery_key]] = row
    if by_body:
        # few lengths, so that the server has its plans: the last body is looked for again
        length = 1 << (len(by_body) - 1).bit_length()
        bodies = [*by_body, *[list(by_body)[-1]] * (length - len(by_body))]
        values: dict[str, object] = {}
        for each, (webhook_id, body) in enumerate(bodies):
            values |= {f"webhook_{each}": webhook_id, f"body_{each}": body}
        for row in connection.execute(_by_body(length), values):
            found[by_body[row.webhook_id, row.body_sha256]] = row
    return found


def alike(connection: Connection, images: Collection[Image]) -> Mapping[Image, Sequence[AnyRow]]:
    """Publications of the same commit or digest that count: not those that failed. The oldest first."""
    platforms = sorted({each.platform_id for each in images})
    rows: dict[UUID, AnyRow] = {}
    for statement, name, values in (
        (_OF_COMMITS, "commits", {each.git_sha for each in images} - {None}),
        (_OF_IMAGES, "digests", {each.digest for each in images} - {None}),
    ):
        if values:
            found = connection.execute(statement, {"platforms": platforms, name: list(values)})
            rows.update((row.id, row) for row in found)
    ordered = [rows[each] for each in sorted(rows)]
    return {image: [row for row in ordered if _is_alike(image, row)] for image in images}


def _is_alike(image: Image, row: AnyRow) -> bool:
    return (row.node_platform_id, row.arch) == (image.platform_id, image.arch) and (
        (image.git_sha is not None and row.git_sha == image.git_sha)
        or (image.digest is not None and row.oci_digest == image.digest)
    )


def accept(connection: Connection, publications: Sequence[Mapping[str, Any]], at: datetime) -> None:
    """New queued publications and their jobs."""
    if publications:
        rows = [{"status": Status.QUEUED, "created_at": at, **each} for each in publications]
        connection.execute(_PUBLISH, rows)
        connection.execute(
            _ENQUEUE, [{"id": row["id"], "created_at": at, "available_at": at} for row in rows]
        )


def remember(connection: Connection, answered: Iterable[Remembered], at: datetime) -> None:
    """Note what deliveries were answered with."""
    new: list[Mapping[str, Any]] = []
    again: list[Mapping[str, Any]] = []
    for each in answered:
        if each.before is not None and each.before.delivery_key == each.key.text:
            again.append({"delivery": each.before.id, "publication": each.publication_id, "at": at})
        else:
            new.append(
                {
                    "id": new_id(),
                    "webhook_id": each.key.webhook_id,
                    "delivery_key": each.key.text,
                    "body_sha256": each.key.body_sha256,
                    "publication_id": each.publication_id,
                    "created_at": at,
                }
            )
    for statement, rows in ((_REMEMBER, new), (_REMEMBER_AGAIN, again)):
        if rows:
            connection.execute(statement, rows)
