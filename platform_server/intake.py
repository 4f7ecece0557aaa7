"""The webhook: who may deliver, what is the same delivery, and what becomes of it.

1. rate: an address that sent too much that was refused waits.
2. webhook: its row; an unknown, disabled or revoked one costs the same time as any other.
3. signature: by a secret that counts now, over the bytes as they came.
4. rate: what one webhook may deliver.
5. count: from here on the webhook has received something, whatever is wrong with it.
6. replay: the same delivery gets the answer that it got, and changes nothing.
7. body: JSON of known fields.
8. platform: of that name, in the webhook's account.
9. image: one already there is a hit; another one for the same commit is a conflict.
10. accepted: publication, job and delivery, in one transaction with all from 5 on.

Two that come at once are kept apart by the database: the second finds what the first wrote. All steps from
2 on are one turn of one thread; what is refused before 5 writes nothing, and step 1 bounds how often.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from platform_server import deliveries
from platform_server.deliveries import AnyRow, Key
from platform_server.identifiers import new_id
from platform_server.metrics import LIMITED
from platform_server.payload import Built, InvalidPayload, parse_built
from platform_server.rates import Rate
from platform_server.signatures import SignatureHeaders, is_signed
from platform_server.state_folder import Platform
from platform_server.states import OPEN, Status
from platform_server.tables import WebhookStatus
from platform_server.webhooks import PREFIX, secrets_of

# How often two deliveries at once may each find the other's row in their way.
_ATTEMPTS = 5
_NOBODY = "nobody"


class Reason(StrEnum):
    """Why a delivery was not accepted."""

    UNKNOWN_WEBHOOK = "unknown_webhook"
    BAD_SIGNATURE = "bad_signature"
    INVALID_PAYLOAD = "invalid_payload"
    UNKNOWN_PLATFORM = "unknown_platform"
    PUBLISHED_ARTIFACT_MISMATCH = "published_artifact_mismatch"
    DELIVERY_MISMATCH = "delivery_mismatch"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"


_HTTP = {
    Reason.UNKNOWN_WEBHOOK: 404,
    Reason.BAD_SIGNATURE: 401,
    Reason.INVALID_PAYLOAD: 422,
    Reason.UNKNOWN_PLATFORM: 422,
    Reason.PUBLISHED_ARTIFACT_MISMATCH: 409,
    Reason.DELIVERY_MISMATCH: 409,
    Reason.TOO_LARGE: 413,
    Reason.RATE_LIMITED: 429,
}


@dataclass(frozen=True, slots=True)
class Received:
    """A delivery as it came: the webhook's id as the path has it, the body's bytes, and from where."""

    webhook_id: str
    body: bytes
    headers: SignatureHeaders
    address: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the sender is told (not `correlation_id`): `http` is the status, `status` its word."""

    http: int
    status: str
    reason: Reason | None = None
    publication_id: UUID | None = None
    note: str | None = None
    retry_after: float | None = None
    correlation_id: str | None = None


def refused(
    reason: Reason, note: str, publication_id: UUID | None = None, wait: float | None = None
) -> Answer:
    """The answer for a reason."""
    http = _HTTP[reason]
    return Answer(http, "conflict" if http == 409 else "error", reason, publication_id, note, wait)


class Intake:
    """Takes deliveries for one platform."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        limits = platform.settings.limits
        self._deliveries = Rate(limits.deliveries, limits.deliveries_burst)
        self._refusals = Rate(limits.refusals, limits.refusals_burst)
        # What takes a secret's place where there is none, so that time does not tell.
        self._nobodys = platform.sealer.seal(PREFIX + secrets.token_urlsafe(32), _NOBODY)

    async def take(self, received: Received) -> Answer:
        """The answer to a delivery; what follows from it is written by then."""
        if self._refusals.left(received.address) < 1:  # 1
            LIMITED.labels("refusals").inc()
            return refused(
                Reason.RATE_LIMITED,
                "too many refused deliveries from this address",
                wait=self._refusals.wait,
            )
        at = self._platform.clock()
        webhook_id = _uuid(received.webhook_id)
        for left in reversed(range(_ATTEMPTS)):
            try:
                answer = await self._platform.database.write_together(
                    lambda on: self._answer(on, webhook_id, received, at), key=str(webhook_id)
                )
                break
            except IntegrityError:
                if not left:
                    raise
        if answer.reason in (Reason.UNKNOWN_WEBHOOK, Reason.BAD_SIGNATURE):
            self._refusals.take(received.address)
        elif answer.reason is Reason.RATE_LIMITED:
            LIMITED.labels("deliveries").inc()
        return answer

    def _answer(
        self, connection: Connection, webhook_id: UUID | None, received: Received, at: datetime
    ) -> Answer:
        """Steps 2 to 10. Only the thread that runs them touches the rate of deliveries; when the database
        asks for them again they count again, which is rare.
        """
        known, signed = self._check(connection, webhook_id, received, at)
        if webhook_id is None or not known:
            return refused(Reason.UNKNOWN_WEBHOOK, "no webhook takes deliveries here")
        if not signed:
            return refused(
                Reason.BAD_SIGNATURE,
                "the body must be signed with this webhook's secret, and not more than 5 minutes ago",
            )
        if not self._deliveries.take(webhook_id):  # 4
            return refused(
                Reason.RATE_LIMITED, "too many deliveries to this webhook", wait=self._deliveries.wait
            )
        return self._record(connection, webhook_id, received, at)

    def _check(
        self, connection: Connection, webhook_id: UUID | None, received: Received, at: datetime
    ) -> tuple[bool, bool]:
        """Steps 2 and 3: whether there is such a webhook, and whether the delivery is signed for it."""
        sealer = self._platform.sealer
        row = deliveries.find_webhook(connection, webhook_id or new_id())  # 2
        known = row is not None and row.status is WebhookStatus.ACTIVE
        valid = secrets_of(row, sealer, at) if row is not None and known else []
        while len(valid) < 2:  # 3: always as many secrets, whether there is a webhook, or a rotation, or not
            valid.append(sealer.open(self._nobodys, _NOBODY))
        signed = is_signed(
            received.headers,
            received.body,
            valid,
            at,
            self._platform.settings.schedule.webhook_tolerance,
            plain_allowed=row is None or row.plain_signatures,
        )
        return known, signed

    def _record(self, connection: Connection, webhook_id: UUID, received: Received, at: datetime) -> Answer:
        """Steps 5 to 10."""
        deliveries.count(connection, webhook_id, at)  # 5
        key = Key(webhook_id, received.headers.webhook_id, hashlib.sha256(received.body).hexdigest())
        before = deliveries.earlier(connection, key)  # 6
        if before is not None and self._is_replay(key, before, at):
            if before.body_sha256 != key.body_sha256:
                return refused(
                    Reason.DELIVERY_MISMATCH,
                    "this webhook-id came with another body before",
                    before.publication_id,
                )
            return _hit(before, before.publication_id, "this delivery was answered before")
        try:
            built, payload = parse_built(received.body)  # 7
        except InvalidPayload as error:
            return refused(Reason.INVALID_PAYLOAD, str(error))
        platform = deliveries.find_platform(connection, webhook_id, built.platform)  # 8
        if platform is None:
            return refused(
                Reason.UNKNOWN_PLATFORM, f"no node platform {built.platform!r} in this webhook's account"
            )
        arch = built.arch or platform.arch
        alike = deliveries.alike(connection, platform.id, arch, built.git_sha, built.digest)
        answer = _known(alike, built)  # 9
        if answer is None:
            columns = _columns(webhook_id, platform, built, payload)
            publication_id = deliveries.accept(connection, columns, at)  # 10
            answer = Answer(202, "queued", None, publication_id, correlation_id=columns["correlation_id"])
        if answer.publication_id is not None and answer.http < 400:
            deliveries.remember(connection, key, before, answer.publication_id, at)
        return answer

    def _is_replay(self, key: Key, before: AnyRow, at: datetime) -> bool:
        """An id names one delivery; a body without one does so for a while."""
        until: datetime = before.created_at + self._platform.settings.schedule.plain_delivery
        return key.identifier is not None or at < until


def _known(alike: Sequence[AnyRow], built: Built) -> Answer | None:
    """Step 9; None when there is nothing that this delivery repeats or contradicts."""
    commit, digest = built.git_sha, built.digest
    for row in alike:
        if commit and row.git_sha == commit and digest and row.oci_digest not in (None, digest):
            return refused(
                Reason.PUBLISHED_ARTIFACT_MISMATCH,
                f"commit {commit} has the image {row.oci_digest}, not {digest}",
                row.id,
            )
    for row in alike:
        there = row.published_at is not None and row.status is not Status.PURGED
        same_commit = commit is not None and row.git_sha == commit
        same_image = digest is not None and row.oci_digest == digest
        if (same_commit and (there or row.status in OPEN)) or (same_image and there):
            return _hit(row, row.id, "this image is there already")
    return None


def _hit(row: AnyRow, publication_id: UUID, note: str) -> Answer:
    if row.status is Status.FAILED and row.duplicate_of_id is None:
        note = f"{note}; it failed: deliver with a new webhook-id to have it verified again"
    return Answer(200, "idempotent_hit", None, publication_id, note, correlation_id=row.correlation_id)


def _columns(webhook_id: UUID, platform: AnyRow, built: Built, payload: dict[str, Any]) -> dict[str, Any]:
    """A new publication as its sender describes it."""
    return {
        "account_id": platform.account_id,
        "node_platform_id": platform.id,
        "webhook_id": webhook_id,
        "correlation_id": str(new_id()),
        "arch": built.arch or platform.arch,
        "git_sha": built.git_sha,
        "oci_ref": built.oci_ref,
        "oci_digest": built.digest,
        "sha256": built.digest.removeprefix("sha256:") if built.digest else None,
        "size_bytes": built.size_bytes,
        "firmware_ref": built.firmware_ref,
        "payload": payload,
    }


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
