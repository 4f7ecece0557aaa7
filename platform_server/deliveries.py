"""The rows that a webhook's delivery reads and writes, by statements that are built once.

This is the path that every delivery takes: through the ORM it would cost four times as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Connection, Row, and_, bindparam, insert, or_, select, update

from platform_server.identifiers import new_id
from platform_server.states import OPEN, Status
from platform_server.tables import Delivery, Job, NodePlatform, Publication, Webhook

AnyRow: TypeAlias = Row[*tuple[Any, ...]]

_webhooks = Webhook.__table__
_platforms = NodePlatform.__table__
_deliveries = Delivery.__table__
_publications = Publication.__table__

_FIND = select(
    _webhooks.c.id,
    _webhooks.c.status,
    _webhooks.c.secret,
    _webhooks.c.previous_secret,
    _webhooks.c.previous_until,
    _webhooks.c.plain_signatures,
).where(_webhooks.c.id == bindparam("webhook"))

_COUNT = (
    update(Webhook)
    .where(_webhooks.c.id == bindparam("webhook"))
    .values(received_count=_webhooks.c.received_count + 1, last_received_at=bindparam("at"))
)

_PLATFORM = (
    select(_webhooks.c.account_id, _platforms.c.id, _platforms.c.arch)
    .join(_platforms, _platforms.c.account_id == _webhooks.c.account_id)
    .where(_webhooks.c.id == bindparam("webhook"), _platforms.c.name == bindparam("platform"))
)

_EARLIER = (
    select(
        _deliveries.c.id,
        _deliveries.c.delivery_key,
        _deliveries.c.body_sha256,
        _deliveries.c.publication_id,
        _deliveries.c.created_at,
        _publications.c.status,
        _publications.c.duplicate_of_id,
        _publications.c.correlation_id,
    )
    .join(_publications, _publications.c.id == _deliveries.c.publication_id)
    .where(_deliveries.c.webhook_id == bindparam("webhook"))
)
_BY_ID = _EARLIER.where(_deliveries.c.delivery_key == bindparam("key"))
_BY_BODY = (
    _EARLIER.where(_deliveries.c.body_sha256 == bindparam("body"))
    .order_by(_deliveries.c.created_at.desc())
    .limit(1)
)

_ALIKE = (
    select(
        _publications.c.id,
        _publications.c.status,
        _publications.c.git_sha,
        _publications.c.oci_digest,
        _publications.c.published_at,
        _publications.c.duplicate_of_id,
        _publications.c.correlation_id,
    )
    .where(
        _publications.c.node_platform_id == bindparam("platform"),
        _publications.c.arch == bindparam("arch"),
        or_(
            _publications.c.git_sha == bindparam("git_sha"),
            _publications.c.oci_digest == bindparam("digest"),
        ),
        or_(
            _publications.c.status.in_(sorted(OPEN)),
            and_(_publications.c.status != Status.FAILED, _publications.c.published_at.is_not(None)),
        ),
    )
    .order_by(_publications.c.id)
)

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


def find_webhook(connection: Connection, webhook_id: UUID) -> AnyRow | None:
    """The webhook's columns that checking a signature needs."""
    return connection.execute(_FIND, {"webhook": webhook_id}).one_or_none()


def count(connection: Connection, webhook_id: UUID, at: datetime) -> None:
    """Note that the webhook received something; it receives nothing else until the transaction ends."""
    connection.execute(_COUNT, {"webhook": webhook_id, "at": at})


def find_platform(connection: Connection, webhook_id: UUID, name: str) -> AnyRow | None:
    """account_id, id and arch of the platform of that name in the webhook's account."""
    return connection.execute(_PLATFORM, {"webhook": webhook_id, "platform": name}).one_or_none()


def earlier(connection: Connection, key: Key) -> AnyRow | None:
    """The last delivery that may be the same: by the id; without one, by the body, whatever its form."""
    if key.identifier is not None:
        return connection.execute(_BY_ID, {"webhook": key.webhook_id, "key": key.text}).one_or_none()
    found = connection.execute(_BY_BODY, {"webhook": key.webhook_id, "body": key.body_sha256})
    return found.one_or_none()


def alike(
    connection: Connection, platform_id: UUID, arch: str, git_sha: str | None, digest: str | None
) -> Sequence[AnyRow]:
    """Publications of the same commit or image that count: not those that failed. The oldest first."""
    if git_sha is None and digest is None:
        return ()
    return connection.execute(
        _ALIKE, {"platform": platform_id, "arch": arch, "git_sha": git_sha, "digest": digest}
    ).all()


def accept(connection: Connection, columns: Mapping[str, Any], at: datetime) -> UUID:
    """A new queued publication and its job."""
    row = {"id": new_id(), "status": Status.QUEUED, "created_at": at, **columns}
    connection.execute(_PUBLISH, row)
    connection.execute(_ENQUEUE, {"id": row["id"], "created_at": at, "available_at": at})
    publication_id: UUID = row["id"]
    return publication_id


def remember(
    connection: Connection, key: Key, before: AnyRow | None, publication_id: UUID, at: datetime
) -> None:
    """Note what the delivery was answered with."""
    if before is not None and before.delivery_key == key.text:
        connection.execute(_REMEMBER_AGAIN, {"delivery": before.id, "publication": publication_id, "at": at})
        return
    connection.execute(
        _REMEMBER,
        {
            "id": new_id(),
            "webhook_id": key.webhook_id,
            "delivery_key": key.text,
            "body_sha256": key.body_sha256,
            "publication_id": publication_id,
            "created_at": at,
        },
    )
