"""The verification queue, in the database: what is accepted is verified, whoever is killed meanwhile.

A job is claimed for the length of a lease. Its holder renews the lease as long as it works, and only as its
holder may it write the outcome, in the transaction that also removes the job. A holder that died loses the
lease by time; a holder that was only slow finds another's name on it. Each claim counts as an attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import Session

from platform_server.identifiers import new_id
from platform_server.settings import Schedule
from platform_server.tables import Job, Publication


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to verify one publication, and which attempt it is (from 1)."""

    publication_id: UUID
    holder: UUID
    attempt: int
    last_error: str | None


class LeaseLost(Exception):
    """Another worker has the job now, or it is done: what this one found out no longer counts."""


def enqueue(session: Session, row: Publication, at: datetime) -> None:
    """Have a publication verified."""
    session.add(Job(id=row.id, created_at=at, available_at=at))


def claim(session: Session, schedule: Schedule, at: datetime) -> Lease | None:
    """The job that has waited longest, leased for the schedule's `lease`; None when none is due.

    One that waits for longer than any does on purpose is due too: it was queued while a clock was ahead.
    """
    job = _first(session, Job.available_at <= at) or _first(
        session, Job.available_at > at + 2 * schedule.longest_retry, Job.lease.is_(None)
    )
    if job is None:
        return None
    job.lease, job.available_at = new_id(), at + schedule.lease
    job.attempts += 1
    return Lease(job.id, job.lease, job.attempts, job.last_error)


def _first(session: Session, *is_due: ColumnElement[bool]) -> Job | None:
    """The first of these jobs that nobody else is claiming."""
    return session.scalars(
        select(Job).where(*is_due).order_by(Job.available_at).limit(1).with_for_update(skip_locked=True)
    ).one_or_none()


def check(session: Session, lease: Lease) -> None:
    """Raise LeaseLost unless the lease is still its holder's, and keep it so for this transaction."""
    _held(session, lease)


def renew(session: Session, lease: Lease, until: datetime) -> None:
    """Keep the lease until then. Raises LeaseLost."""
    _held(session, lease).available_at = until


def put_back(session: Session, lease: Lease, at: datetime, error: str) -> None:
    """Give the job up until `at`, and say why. Raises LeaseLost."""
    job = _held(session, lease)
    job.lease, job.available_at, job.last_error = None, at, error


def release(session: Session, lease: Lease, at: datetime) -> None:
    """Give the job up, as if it had never been claimed. Raises LeaseLost."""
    job = _held(session, lease)
    job.lease, job.available_at = None, at
    job.attempts -= 1


def finish(session: Session, lease: Lease) -> None:
    """Remove the job, in the transaction that writes its outcome. Raises LeaseLost."""
    gone = delete(Job).where(*_is_held(lease)).returning(Job.id)
    if session.scalar(gone) is None:
        raise LeaseLost


def _held(session: Session, lease: Lease) -> Job:
    job = session.scalars(select(Job).where(*_is_held(lease)).with_for_update()).one_or_none()
    if job is None:
        raise LeaseLost
    return job


def _is_held(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return (Job.id == lease.publication_id, Job.lease == lease.holder)
