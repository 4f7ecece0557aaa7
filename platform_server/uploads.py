"""Direct upload, as rows: an image that comes to the platform itself instead of to a registry.

1. initiate: a pipeline says what it has; the row waits for it (`awaiting_upload`).
2. the bytes come (upload_files.py).
3. finalize: they are there; the row is verified like any other.

What is not finalized in time fails, and its bytes are deleted. No row's image is ever replaced: a commit
that has another image is a conflict, as at the webhook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from platform_server import node_platforms, publications, queue
from platform_server.errors import Conflict, Invalid, TooLarge, TooOften, missing
from platform_server.events import Kind, Told, emit, of_publication
from platform_server.identifiers import new_id
from platform_server.permissions import Caller
from platform_server.states import KEPT, OPEN, Status, Transition, move
from platform_server.tables import NodePlatform, Publication

SOURCE = "ci_pipeline_direct"
# Uploads of one account that are initiated and neither finalized nor abandoned.
MOST_AWAITED = 1000
# A statement has room for so many ids, and some more.
_AT_A_TIME = 1000


@dataclass(frozen=True, slots=True)
class Offer:
    """What a pipeline wants to upload: of the file, sha256 in hex and size in bytes."""

    platform_name: str
    sha256: str
    size_bytes: int
    git_sha: str
    arch: str | None = None
    firmware_ref: str | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """The publication; `wanted` unless the platform has the image, or its bytes, already."""

    row: Publication
    wanted: bool


def initiate(session: Session, caller: Caller, offer: Offer, space: int, at: datetime) -> Begun:
    """A row that waits for the upload, or the one that the platform has of this commit.

    `space` is how many bytes there is room for in all. Raises Missing for the platform, Invalid when it has
    no trust policy, TooOften, TooLarge, and Conflict when the commit has another image.
    """
    named = node_platforms.named(session, caller.account_id, offer.platform_name)
    if named is None:
        raise missing("node platform", offer.platform_name)
    platform = node_platforms.hold(session, named.id)
    if platform.cosign_identity_regexp is None or platform.cosign_issuer_regexp is None:
        raise Invalid(
            what=f"no_trust_policy: platform {platform.name!r} has no cosign trust policy configured",
            hint="set cosign_identity_regexp and cosign_issuer_regexp first",
        )
    arch = offer.arch or platform.arch
    found = _of_commit(session, platform, arch, offer.git_sha)
    if found is not None:
        return Begun(found, _is_wanted(found, offer, at))
    _check_space(session, platform.account_id, offer.size_bytes, space)
    row = Publication(
        account_id=platform.account_id,
        node_platform_id=platform.id,
        worker_id=caller.worker_id,
        correlation_id=str(new_id()),
        status=Status.QUEUED,
        arch=arch,
        git_sha=offer.git_sha,
        firmware_ref=offer.firmware_ref,
        upload_sha256=offer.sha256,
        upload_size_bytes=offer.size_bytes,
        payload=_payload(offer),
        created_at=at,
    )
    session.add(row)
    session.flush()
    move(row, Transition.AWAIT_UPLOAD, at)
    return Begun(row, True)


def awaited(session: Session, publication_id: UUID) -> Publication:
    """The row whose bytes may come now. Raises Missing, Conflict."""
    row = session.get(Publication, publication_id)
    if row is None or row.upload_sha256 is None:
        raise missing("upload", publication_id)
    if row.status is not Status.AWAITING_UPLOAD:
        raise Conflict(
            f"publication {row.id} awaits no upload, current={row.status}", "look at what became of it"
        )
    return row


def finalize(
    session: Session,
    caller: Caller,
    publication_id: UUID,
    sha256: str,
    arrived: Callable[[Publication], bool],
    at: datetime,
) -> Publication:
    """Have what was uploaded verified; asked again, the row as it is by then.

    Raises Missing, Invalid when `sha256` is not the upload's, and Conflict when nothing is awaited or
    `arrived` says that the bytes are not there.
    """
    asked = publications.get(session, caller, publication_id)
    row, _platform = node_platforms.hold_of(session, asked.id)
    if row.upload_sha256 is None:
        raise Invalid(
            what=f"publication {row.id} awaits no upload, current={row.status}", hint="initiate an upload"
        )
    if sha256 != row.upload_sha256:
        raise Invalid(field="sha256_verify", value=sha256, rule=f"{row.upload_sha256}, as initiated")
    if row.status is not Status.AWAITING_UPLOAD:
        return row
    if not arrived(row):
        raise Conflict(
            f"publication {row.id}: its bytes have not arrived",
            "PUT them to signed_upload_url, then finalize",
        )
    move(row, Transition.START_VERIFYING, at)
    queue.enqueue(session, row, at)
    return row


def expire(session: Session, before: datetime, at: datetime) -> int:
    """Fail every row whose upload was initiated before that time and never finalized; how many."""
    waiting = session.execute(
        select(Publication.id, Publication.node_platform_id)
        .where(Publication.status == Status.AWAITING_UPLOAD, Publication.awaiting_upload_at < before)
        # in the order in which another process holds them, too
        .order_by(Publication.node_platform_id, Publication.id)
    ).all()
    failed = 0
    for publication_id, platform_id in waiting:
        platform = node_platforms.hold(session, platform_id)
        row = session.get_one(Publication, publication_id, with_for_update=True, populate_existing=True)
        if row.status is not Status.AWAITING_UPLOAD:
            continue
        row.error_message = "upload_expired: expected it to be finalized in time, found it abandoned"
        move(row, Transition.MARK_FAILED, at)
        payload = of_publication(
            row,
            platform,
            reason="upload_expired",
            error_message=row.error_message,
            error=row.error_message,
            attempt_count=row.attempt_count,
        )
        emit(session, row.account_id, Kind.PUBLISH_FAILED, payload, Told(SOURCE, row.correlation_id), at)
        failed += 1
    return failed


def needed(session: Session, ids: Sequence[UUID]) -> frozenset[UUID]:
    """Those of the ids whose publications may still need their bytes."""
    query = select(Publication.id).where(Publication.status.in_(OPEN | KEPT))
    return frozenset(
        found
        for first in range(0, len(ids), _AT_A_TIME)
        for found in session.scalars(query.where(Publication.id.in_(ids[first : first + _AT_A_TIME])))
    )


def upload_name(publication_id: UUID) -> str:
    """The name of an uploaded image's file."""
    return f"{publication_id}.tar"


def until(row: Publication, period: timedelta) -> datetime:
    """When the row's bytes must be there."""
    assert row.awaiting_upload_at is not None
    return row.awaiting_upload_at + period


def _of_commit(session: Session, platform: NodePlatform, arch: str, git_sha: str) -> Publication | None:
    """What the platform has of the commit, or is told to expect; not what failed or was purged."""
    return session.scalars(
        select(Publication)
        .where(
            Publication.node_platform_id == platform.id,
            Publication.arch == arch,
            Publication.git_sha == git_sha,
            or_(
                Publication.status.in_(OPEN),
                Publication.status.in_(KEPT) & Publication.published_at.is_not(None),
            ),
        )
        .order_by(Publication.published_at.is_(None), Publication.id)
        .limit(1)
    ).one_or_none()


def _is_wanted(row: Publication, offer: Offer, at: datetime) -> bool:
    """Whether this very upload is still awaited. Raises Conflict when another one is there."""
    if row.upload_sha256 is not None and (row.upload_sha256, row.upload_size_bytes) != (
        offer.sha256,
        offer.size_bytes,
    ):
        word = "published_artifact_mismatch: " if row.published_at is not None else ""
        raise Conflict(
            f"{word}commit {offer.git_sha} has the upload {row.upload_sha256} (publication {row.id}, "
            f"{row.status}), not {offer.sha256}",
            "upload what was built of this commit first, or wait until that upload has failed",
        )
    if row.status is not Status.AWAITING_UPLOAD:
        return False
    row.awaiting_upload_at = at
    return True


def _check_space(session: Session, account_id: UUID, size: int, space: int) -> None:
    waiting = select(Publication.id).where(
        Publication.account_id == account_id, Publication.status == Status.AWAITING_UPLOAD
    )
    if len(session.scalars(waiting.limit(MOST_AWAITED)).all()) == MOST_AWAITED:
        raise TooOften(
            f"{MOST_AWAITED} uploads of this account are awaited already",
            "finalize them; those that are abandoned fail after an hour",
            60.0,
        )
    promised = session.scalar(
        select(func.sum(Publication.upload_size_bytes)).where(Publication.status == Status.AWAITING_UPLOAD)
    )
    if size > space - (promised or 0):
        raise TooLarge(
            f"size_bytes: expected at most {max(0, space - (promised or 0))}, which there is room for, "
            f"found {size}",
            "try again when other uploads are done, or push the image to a registry",
        )


def _payload(offer: Offer) -> dict[str, Any]:
    return {
        "platform_name": offer.platform_name,
        "sha256": offer.sha256,
        "size_bytes": offer.size_bytes,
        "git_sha": offer.git_sha,
        "arch": offer.arch,
        "firmware_ref": offer.firmware_ref,
    }
