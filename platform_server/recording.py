"""What becomes of deliveries whose webhook and signature are known: steps 6 to 10 of `intake.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from platform_server import deliveries
from platform_server.answers import Answer, Reason, refused
from platform_server.deliveries import AnyRow, Image, Key, Remembered
from platform_server.identifiers import new_id
from platform_server.payload import Built, InvalidPayload, parse_built
from platform_server.states import OPEN, Status


@dataclass(frozen=True, slots=True)
class Taken:
    """A delivery by its place among those that came together; `built` is what its body says, or what is
    wrong with that.
    """

    place: int
    key: Key
    built: Built | InvalidPayload
    payload: dict[str, Any]

    @classmethod
    def of(cls, place: int, webhook_id: UUID, identifier: str | None, body: bytes) -> Taken:
        """A delivery as it came."""
        key = Key(webhook_id, identifier, hashlib.sha256(body).hexdigest())
        try:
            built, payload = parse_built(body)
        except InvalidPayload as error:
            return cls(place, key, error, {})
        return cls(place, key, built, payload)

    def marks(self) -> frozenset[tuple[str, object]]:
        """What another delivery has one of too, if it is the same, or reports the same commit or image."""
        found: set[tuple[str, object]] = {("key", self.key.text), ("body", self.key.body_sha256)}
        if isinstance(self.built, Built):
            found |= {("commit", self.built.git_sha), ("digest", self.built.digest)}
        return frozenset(each for each in found if each[1] is not None)


def record(
    connection: Connection, taken: Sequence[Taken], plain_delivery: timedelta, at: datetime
) -> dict[int, Answer]:
    """The answers by place, once what follows from them is written. A body without an id is the same
    delivery for `plain_delivery`.
    """
    answers: dict[int, Answer] = {}
    while taken:
        apart, taken = _apart(taken)
        answers |= _record(connection, apart, plain_delivery, at)
    return answers


def _apart(taken: Sequence[Taken]) -> tuple[Sequence[Taken], Sequence[Taken]]:
    """Deliveries that have nothing in common, and the others, which must see what became of these."""
    seen: set[tuple[str, object]] = set()
    apart: list[Taken] = []
    others: list[Taken] = []
    for each in taken:
        marks = each.marks()
        (others if marks & seen else apart).append(each)
        seen |= marks
    return apart, others


def _record(
    connection: Connection, group: Sequence[Taken], plain_delivery: timedelta, at: datetime
) -> dict[int, Answer]:
    before = deliveries.earlier(connection, [each.key for each in group])
    answers: dict[int, Answer] = {}
    valid: list[tuple[Taken, Built]] = []
    for each in group:
        replayed = _replayed(before.get(each.key), each.key, plain_delivery, at)  # 6
        if replayed is not None:
            answers[each.place] = replayed
        elif isinstance(each.built, InvalidPayload):  # 7
            answers[each.place] = refused(Reason.INVALID_PAYLOAD, str(each.built))
        else:
            valid.append((each, each.built))
    names = {(each.key.webhook_id, built.platform) for each, built in valid}
    platforms = deliveries.find_platforms(connection, names)  # 8
    reported: list[tuple[Taken, Built, AnyRow, Image]] = []
    for each, built in valid:
        platform = platforms.get((each.key.webhook_id, built.platform))
        if platform is None:
            note = f"no node platform {built.platform!r} in this webhook's account"
            answers[each.place] = refused(Reason.UNKNOWN_PLATFORM, note)
        else:
            image = Image(platform.id, built.arch or platform.arch, built.git_sha, built.digest)
            reported.append((each, built, platform, image))
    alike = deliveries.alike(connection, {image for *_, image in reported})
    new: list[dict[str, Any]] = []
    remembered: list[Remembered] = []
    for each, built, platform, image in reported:
        answer = _known(alike[image], image)  # 9
        if answer is None:
            row = _columns(each, built, platform.account_id, image)
            new.append(row)
            answer = Answer(202, "queued", None, row["id"], correlation_id=row["correlation_id"])
        if answer.publication_id is not None and answer.http < 400:
            remembered.append(Remembered(each.key, before.get(each.key), answer.publication_id))
        answers[each.place] = answer
    deliveries.accept(connection, new, at)  # 10
    deliveries.remember(connection, remembered, at)
    return answers


def _replayed(before: AnyRow | None, key: Key, plain_delivery: timedelta, at: datetime) -> Answer | None:
    """Step 6; None if it is no replay. An id names one delivery, a body without one does so for a while."""
    if before is None or (key.identifier is None and at >= before.created_at + plain_delivery):
        return None
    if before.body_sha256 != key.body_sha256:
        note = "this webhook-id came with another body before"
        return refused(Reason.DELIVERY_MISMATCH, note, before.publication_id)
    return _hit(before, before.publication_id, "this delivery was answered before")


def _known(alike: Sequence[AnyRow], image: Image) -> Answer | None:
    """Step 9; None when there is nothing that this delivery repeats or contradicts."""
    commit, digest = image.git_sha, image.digest
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


def _columns(taken: Taken, built: Built, account_id: UUID, image: Image) -> dict[str, Any]:
    """A new publication as its sender describes it."""
    return {
        "id": new_id(),
        "account_id": account_id,
        "node_platform_id": image.platform_id,
        "webhook_id": taken.key.webhook_id,
        "correlation_id": str(new_id()),
        "arch": image.arch,
        "git_sha": image.git_sha,
        "oci_ref": built.oci_ref,
        "oci_digest": image.digest,
        "sha256": image.digest.removeprefix("sha256:") if image.digest else None,
        "size_bytes": built.size_bytes,
        "firmware_ref": built.firmware_ref,
        "payload": taken.payload,
    }
