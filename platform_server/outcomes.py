"""What becomes of a publication: it is published, refused, or closed as a duplicate.

Only the lease holder may write one, and the job goes in the same transaction: there is one outcome, whoever
is killed, and an event tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from platform_server import node_platforms, purge, queue, retention
from platform_server.events import Kind, Told, emit, of_publication
from platform_server.manager import candidates
from platform_server.queue import Lease
from platform_server.settings import Schedule
from platform_server.states import KEPT, RULES, Transition, move
from platform_server.tables import NodePlatform, Publication
from platform_server.verifier import Rejected, check_claims
from supply_chain.verify.image import Verified

_LONGEST_ERROR = 4000


class NotNow(Exception):
    """The image holds and can't be published yet; the same attempt later may."""


@dataclass(frozen=True, slots=True)
class Task:
    """A publication to verify, and the platform that it is for."""

    lease: Lease
    row: Publication
    platform: NodePlatform


@dataclass(frozen=True, slots=True)
class Turn:
    """A job that was claimed, and what is to be done: the task, the refusal to write, or nothing."""

    lease: Lease
    task: Task | Rejected | None


def next_turn(session: Session, schedule: Schedule, at: datetime) -> Turn | None:
    """Claim the job that has waited longest, and begin it; None when none is due."""
    lease = queue.claim(session, schedule, at)
    return None if lease is None else Turn(lease, _begin(session, lease, schedule.attempts, at))


def _begin(session: Session, lease: Lease, attempts: int, at: datetime) -> Task | Rejected | None:
    """The publication, now verifying; None when there is nothing left to do, and the job is gone; Rejected
    when it was tried `attempts` times already: whoever tried last was killed, or failed.
    """
    row, platform = node_platforms.hold_of(session, lease.publication_id)
    if row.status not in RULES[Transition.START_VERIFYING].sources:
        queue.finish(session, lease)
        return None
    if lease.attempt > attempts:
        why = lease.last_error or "cut off"
        return Rejected("gave_up", f"no verdict after {attempts} attempts: {why}")
    move(row, Transition.START_VERIFYING, at)
    row.attempt_count += 1
    row.error_message = None
    return Task(lease, row, platform)


def pin(session: Session, lease: Lease, digest: str, at: datetime) -> bool:
    """Keep the digest that a tag resolved to, so that a later attempt verifies the same image.

    False when the publication is closed by that: the image is published already.
    """
    row, platform = _held(session, lease)
    row.oci_digest, row.sha256 = digest, digest.removeprefix("sha256:")
    return not _closed_as_duplicate(session, lease, row, platform, at)


def publish(session: Session, lease: Lease, verified: Verified, at: datetime) -> Publication:
    """The image holds: publish it, unless another publication already has it, or its commit.

    Raises Rejected when what the sender said is wrong, or the commit is published with another image; NotNow
    when it has to wait.
    """
    row, platform = _held(session, lease)
    check_claims(row, platform, verified)
    row.oci_digest, row.sha256 = verified.digest, verified.digest.removeprefix("sha256:")
    if _closed_as_duplicate(session, lease, row, platform, at):
        return row
    commit = row.git_sha or verified.git_sha
    _check_commit(session, row, commit)
    if purge.is_going(session, row):
        raise NotNow(f"{row.oci_digest} is being deleted from its registry, with another publication")
    row.git_sha, row.size_bytes = commit, verified.size
    row.cosign_verified = True
    row.certificate_identity, row.certificate_issuer = verified.identity, verified.issuer
    row.sbom_digest, row.provenance_digest = verified.sbom, verified.provenance
    row.error_message = None
    move(row, Transition.MARK_PUBLISHED, at)
    session.flush()
    if platform.default_publication_id is None:
        platform.default_publication_id = row.id
    else:
        candidates.offer(session, platform, row, at)
    retention.retire_surplus(session, platform, at)
    queue.finish(session, lease)
    payload = of_publication(
        row,
        platform,
        is_default=platform.default_publication_id == row.id,
        certificate_identity=row.certificate_identity,
        certificate_issuer=row.certificate_issuer,
    )
    emit(session, row.account_id, Kind.PUBLISHED, payload, _told(row), at)
    return row


def fail(session: Session, lease: Lease, rejected: Rejected, at: datetime) -> Publication:
    """The image does not hold. What the platform has published stays as it is."""
    row, platform = _held(session, lease)
    row.cosign_verified = False
    row.error_message = str(rejected)[:_LONGEST_ERROR]
    move(row, Transition.MARK_FAILED, at)
    queue.finish(session, lease)
    payload = of_publication(
        row,
        platform,
        reason=rejected.reason,
        error_message=row.error_message,
        error=row.error_message,
        attempt_count=row.attempt_count,
    )
    emit(session, row.account_id, Kind.PUBLISH_FAILED, payload, _told(row), at)
    return row


def _held(session: Session, lease: Lease) -> tuple[Publication, NodePlatform]:
    """The publication and its platform, both held; raises LeaseLost."""
    queue.check(session, lease)
    return node_platforms.hold_of(session, lease.publication_id)


def _closed_as_duplicate(
    session: Session, lease: Lease, row: Publication, platform: NodePlatform, at: datetime
) -> bool:
    """Close the row if another one has published the image that it turned out to be."""
    first = session.scalars(
        select(Publication).where(*_published_beside(row), Publication.oci_digest == row.oci_digest).limit(1)
    ).one_or_none()
    if first is None:
        return False
    row.duplicate_of_id = first.id
    row.error_message = f"duplicate: {row.oci_digest} is publication {first.id}"
    move(row, Transition.MARK_FAILED, at)
    queue.finish(session, lease)
    return True


def _check_commit(session: Session, row: Publication, commit: str | None) -> None:
    """A commit has one image for ever, also when that was retired."""
    if commit is None:
        return
    other = session.scalars(
        select(Publication)
        .where(
            Publication.node_platform_id == row.node_platform_id,
            Publication.arch == row.arch,
            Publication.git_sha == commit,
            Publication.published_at.is_not(None),
            Publication.oci_digest != row.oci_digest,
        )
        .limit(1)
    ).first()
    if other is not None:
        raise Rejected(
            "published_artifact_mismatch",
            f"commit {commit}: expected {other.oci_digest}, as publication {other.id} has it, "
            f"got {row.oci_digest}",
        )


def _published_beside(row: Publication) -> tuple[ColumnElement[bool], ...]:
    return (
        Publication.node_platform_id == row.node_platform_id,
        Publication.arch == row.arch,
        Publication.id != row.id,
        Publication.status.in_(KEPT),
        Publication.published_at.is_not(None),
        # one that is being deleted is no image to point to
        Publication.purge_started_at.is_(None),
    )


def _told(row: Publication) -> Told:
    return Told("disk_image_webhook" if row.webhook_id else "ci_pipeline_direct", row.correlation_id)
