"""Many publications beside those of a test, each lot in one state, for what should have nothing to do with
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from platform_server.events import Kind
from platform_server.identifiers import new_id
from platform_server.states import Status
from platform_server.tables import (
    Agent,
    ApprovalRequest,
    Category,
    Delivery,
    Event,
    Instance,
    Job,
    Publication,
    RequestStatus,
    SecretPickup,
    User,
    Webhook,
    WebhookStatus,
    Worker,
    WorkerRole,
    WorkerStatus,
)
from tests.platform_server.rows import verified
from tests.platform_server.verifying import Trial

_CHUNK = 5000
_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Mix:
    """Columns of a publication by its number, the time, and the image that the test's own is like."""

    columns: Callable[[int, datetime, Publication], dict[str, Any]]
    has_job: bool = False
    is_booted: bool = False


def _new(number: int) -> dict[str, Any]:
    return {"git_sha": f"{number:040x}"}


def _was(at: datetime, status: Status, **more: Any) -> dict[str, Any]:
    return {"status": status, "verified_at": at, "published_at": at, "verifying_at": at, **more}


def _queued(number: int, at: datetime, like: Publication) -> dict[str, Any]:
    return _new(number) | {"status": Status.QUEUED}


def _stuck(number: int, at: datetime, like: Publication) -> dict[str, Any]:
    return _queued(number, at, like) | {"created_at": at - 2 * _HOUR, "stuck_reported_at": at - _HOUR}


def _verifying(number: int, at: datetime, like: Publication) -> dict[str, Any]:
    return _new(number) | {"status": Status.VERIFYING, "verifying_at": at}


def _failed(number: int, at: datetime, like: Publication) -> dict[str, Any]:
    return _new(number) | {
        "status": Status.FAILED,
        "failed_at": at,
        "error_message": "verification_failed: no",
    }


def _duplicate(number: int, at: datetime, like: Publication) -> dict[str, Any]:
    return {
        "status": Status.FAILED,
        "failed_at": at,
        "duplicate_of_id": like.id,
        "git_sha": like.git_sha,
        "oci_digest": like.oci_digest,
        "oci_ref": like.oci_ref,
        "error_message": "duplicate",
    }


def _published(number: int, at: datetime, like: Publication) -> dict[str, Any]:
    return verified(number) | _was(at, Status.PUBLISHED)


def _retired(number: int, at: datetime, like: Publication) -> dict[str, Any]:
    return verified(number) | _was(at, Status.RETIRED, retired_at=at)


def _purged(number: int, at: datetime, like: Publication) -> dict[str, Any]:
    return verified(number) | _was(at, Status.PURGED, retired_at=at, purged_at=at)


# What has come to its end, which nothing that is asked or done has to do with. The last ones are the newest.
HISTORY: Sequence[Mix] = (
    Mix(_failed),
    Mix(_retired),
    Mix(_retired, is_booted=True),
    Mix(_purged),
    Mix(_duplicate),
)
# What waits, which sweeps and gauges go through, and what platforms keep.
PRESENT: Sequence[Mix] = (
    Mix(_queued, has_job=True),
    Mix(_stuck, has_job=True),
    Mix(_verifying, has_job=True),
    Mix(_published, is_booted=True),
)


def fill(trial: Trial, mixes: Sequence[Mix], count: int, like: Publication) -> None:
    """So many publications of each mix, of the trial's platform, with what belongs to them, and as many of
    what else an account gathers.
    """
    for number, mix in enumerate(mixes, 1):
        _fill(trial, mix, number * count * 10, count, like)
    if not trial.platform.database.is_sqlite:
        # as the server itself does after so many rows
        trial.write(lambda on: on.execute(text("ANALYZE")))


def _fill(trial: Trial, mix: Mix, above: int, count: int, like: Publication) -> None:
    at = trial.clock()
    common: dict[str, Any] = {
        column.key: None for column in Publication.__table__.columns if column.nullable
    } | {
        "account_id": like.account_id,
        "node_platform_id": like.node_platform_id,
        "webhook_id": trial.webhook_id,
        "correlation_id": "",
        "arch": "amd64",
        "payload": {},
        "cosign_verified": False,
        "attempt_count": 0,
        "created_at": at,
        "oci_ref": like.oci_ref,
    }  # fmt: skip
    ids = [new_id() for _ in range(count)]

    def write(session: Session) -> None:
        for first in range(0, count, _CHUNK):
            part = list(enumerate(ids))[first : first + _CHUNK]
            rows = [common | mix.columns(above + number, at, like) | {"id": each} for number, each in part]
            session.execute(insert(Publication), rows)
            if mix.has_job:
                later = at + _HOUR
                jobs = [
                    {"id": each, "created_at": at, "available_at": later, "attempts": 0} for _, each in part
                ]
                session.execute(insert(Job), jobs)
            if mix.is_booted:
                session.execute(insert(Instance), [_node(each, like, at) for _, each in part])
            for table, row in (
                (Event, _event), (ApprovalRequest, _decided), (Delivery, _delivered), (SecretPickup, _read),
                (Webhook, _revoked), (Worker, _terminated),
            ):  # fmt: skip
                session.execute(insert(table), [row(session, trial, each, like, at) for _, each in part])

    trial.write(write)


def _node(each: UUID, like: Publication, at: datetime) -> dict[str, Any]:
    return {
        "id": new_id(),
        "account_id": like.account_id,
        "node_platform_id": like.node_platform_id,
        "publication_id": each,
        "name": "node",
        "created_at": at,
    }


def _event(session: Session, trial: Trial, each: UUID, like: Publication, at: datetime) -> dict[str, Any]:
    """What the manager did two days ago."""
    return {
        "id": new_id(),
        "account_id": like.account_id,
        "kind": Kind.DEFAULT_SET,
        "severity": "low",
        "source": "disk_image_manager",
        "correlation_id": str(each),
        "payload": {},
        "created_at": at - timedelta(days=2),
    }


def _decided(session: Session, trial: Trial, each: UUID, like: Publication, at: datetime) -> dict[str, Any]:
    agent = session.info.setdefault("agent", None) or session.scalars(select(Agent.id)).first()
    session.info["agent"] = agent
    return {
        "id": new_id(),
        "account_id": like.account_id,
        "agent_id": agent,
        "action_category": Category.PROMOTE,
        "natural_key": f"{Category.PROMOTE}:{each}",
        "node_platform_id": like.node_platform_id,
        "publication_id": each,
        "description": "promote it",
        "status": RequestStatus.REJECTED,
        "expires_at": at - timedelta(days=2),
        "decided_at": at - timedelta(days=2),
        "created_at": at - timedelta(days=3),
    }


def _delivered(
    session: Session, trial: Trial, each: UUID, like: Publication, at: datetime
) -> dict[str, Any]:
    return {
        "id": new_id(),
        "webhook_id": trial.webhook_id,
        "delivery_key": f"id:{each}",
        "body_sha256": "0" * 64,
        "publication_id": each,
        "created_at": at,
    }


def _read(session: Session, trial: Trial, each: UUID, like: Publication, at: datetime) -> dict[str, Any]:
    """A secret that somebody read a day ago."""
    user = session.info.setdefault("user", None) or session.scalars(select(User.id)).first()
    session.info["user"] = user
    return {
        "id": new_id(),
        "account_id": like.account_id,
        "user_id": user,
        "action": "provision_disk_image_webhook",
        "field": "webhook_secret",
        "sealed": None,
        "expires_at": at - timedelta(days=1),
        "read_at": at - timedelta(days=1),
        "created_at": at - timedelta(days=1),
    }


def _revoked(session: Session, trial: Trial, each: UUID, like: Publication, at: datetime) -> dict[str, Any]:
    return {
        "id": new_id(),
        "account_id": like.account_id,
        "label": str(each),
        "label_key": str(each),
        "status": WebhookStatus.REVOKED,
        "secret": b"",
        "secret_preview": "",
        "plain_signatures": True,
        "received_count": 0,
        "created_at": at,
        "updated_at": at,
    }


def _terminated(
    session: Session, trial: Trial, each: UUID, like: Publication, at: datetime
) -> dict[str, Any]:
    return {
        "id": new_id(),
        "account_id": like.account_id,
        "name": "runner",
        "role": WorkerRole.CI_WORKER,
        "status": WorkerStatus.REVOKED,
        "token_digest": each.bytes * 2,
        "created_at": at,
        "updated_at": at,
    }
