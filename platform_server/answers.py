"""What a webhook's delivery is answered with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


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
    UNAVAILABLE = "unavailable"


_HTTP = {
    Reason.UNKNOWN_WEBHOOK: 404,
    Reason.BAD_SIGNATURE: 401,
    Reason.INVALID_PAYLOAD: 422,
    Reason.UNKNOWN_PLATFORM: 422,
    Reason.PUBLISHED_ARTIFACT_MISMATCH: 409,
    Reason.DELIVERY_MISMATCH: 409,
    Reason.TOO_LARGE: 413,
    Reason.RATE_LIMITED: 429,
    Reason.UNAVAILABLE: 503,
}


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
