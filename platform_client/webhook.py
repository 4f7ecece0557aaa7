"""Telling the platform by its webhook that an image is in a registry.

The body is thin: it names the image, and the platform fetches and verifies by itself. Whether a delivery was
taken is read from the answer's body, since platforms exist that answer 200 to everything.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.definition import canonical_json
from platform_client.calls import POLICY, Calls, answered_object, heals, open_calls, refusal, word
from platform_client.errors import Conflict, NotThePlatform, Refused
from platform_client.settings import Webhook
from platform_client.signatures import signed_headers
from supply_chain.errors import InvalidDocument
from supply_chain.oci import Digest, parse_object
from supply_chain.registry.retry import Policy
from supply_chain.registry.wire import Answer, Body

# What the platform takes, and more than any answer of its webhook has. In bytes.
BODY_LIMIT = 64 * 1024

_Name = Annotated[str, Field(min_length=1, max_length=255)]
_Text = Annotated[str, Field(min_length=1, max_length=4096)]

_HINTS = {
    "unknown_webhook": "it is unknown, disabled or revoked: set the URL and secret of another one",
    "bad_signature": "set the secret that belongs to this webhook; if it does, set this machine's clock",
    "unknown_platform": "create the platform there, or name another one with --platform-slug",
    "published_artifact_mismatch": "what is published stays as it is: build from a new commit",
    "delivery_mismatch": "the delivery was changed on its way or under its id: send it as a new one",
    "invalid_payload": "the platform expects other fields: see its version and its log",
    "processing_error": "the platform failed: see its log",
    "rate_limited": "wait, as it asks",
    "unavailable": "the same command later: its database is away, or can't be written",
}
_HTTP_HINTS = {
    401: _HINTS["bad_signature"],
    403: _HINTS["bad_signature"],
    404: _HINTS["unknown_webhook"],
    410: _HINTS["unknown_webhook"],
}


class WebhookBody(BaseModel):
    """An image for a platform. `sha256` is the manifest digest's hex, `size_bytes` that of all its blobs
    together.

    Platforms know theirs as `platform_slug` or as `platform_name`; both may stand here.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    platform_slug: _Name | None = None
    platform_name: _Name | None = None
    oci_ref: _Text
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    size_bytes: Annotated[int, Field(gt=0)] | None = None
    git_sha: _Text | None = None
    arch: Literal["amd64", "arm64"] | None = None
    firmware_ref: _Text | None = None
    sbom_path: _Text | None = None
    oci_digest: Digest | None = None

    @model_validator(mode="after")
    def _names_a_platform(self) -> WebhookBody:
        if self.platform_slug is None and self.platform_name is None:
            raise ValueError("needs platform_slug or platform_name")
        return self

    def to_bytes(self) -> bytes:
        """As it is signed and sent: canonical JSON of what is set."""
        return canonical_json(self.model_dump(exclude_none=True))


@dataclass(frozen=True, slots=True)
class Taken:
    """The platform's word: `queued`, or `idempotent_hit` for a delivery or an image that it has already;
    `note` is what else it says.
    """

    status: str
    publication_id: str | None
    note: str | None = None

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self)


async def deliver(
    webhook: Webhook,
    delivery_id: str,
    body: bytes,
    *,
    policy: Policy | None = None,
    ca_file: Path | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Taken:
    """Post `body` until the platform says what became of it; every attempt is signed anew, under one id.

    (1) Only a transient failure is tried again, within the policy's bounds. (2) A redirect is a failure.
    (3) The body's `status` decides, whatever the HTTP status: `error` and `conflict` are failures. (4) What
    has no such status is no answer of a platform.

    Raises Unreachable, Refused, Conflict and NotThePlatform.
    """
    policy = policy or POLICY
    async with open_calls(
        webhook.url,
        webhook.secrets,
        policy=policy,
        ca_file=ca_file,
        who="the webhook",
        transport=transport,
    ) as calls:
        answer = await calls.send(  # (1) (2)
            "POST",
            webhook.url,
            lambda: {
                "content-type": "application/json",
                "accept": "application/json",
                **signed_headers(webhook.key, delivery_id, int(policy.now()), body),
            },
            Body.of(body),
            heals=_heals,
            limit=BODY_LIMIT,
        )
        return _taken(answer, calls)


def _heals(answer: Answer) -> bool:
    told = _told(answer)
    if told.get("status") == "conflict":
        return False
    return heals(answer) or (told.get("status") == "error" and told.get("reason") == "rate_limited")


def _told(answer: Answer) -> dict[str, object]:
    """The answer's object; nothing when it is none."""
    try:
        return parse_object(answer.content, "answer")
    except InvalidDocument:
        return {}


def _taken(answer: Answer, calls: Calls) -> Taken:
    told = _told(answer)
    status, reason = word(told.get("status")), word(told.get("reason"))
    if status in ("error", "conflict"):  # (3)
        more = next((told[name] for name in ("hint", "note", "error_message") if told.get(name)), "")
        what = f"{calls.who}: {status} {reason or '(no reason)'}, with HTTP {answer.status}"
        error = Conflict if status == "conflict" else Refused
        raise error(
            f"{what}: {calls.said(more)}" if more else what,
            _HINTS.get(reason or "", "see the platform's log"),
            answer.status,
            reason,
        )
    if not 200 <= answer.status < 300:
        raise refusal(answer, calls, "the delivery", _HTTP_HINTS)
    told = answered_object(answer, calls)  # (4)
    if status not in ("queued", "idempotent_hit") or told.get("success") is False:
        raise NotThePlatform(
            f"{calls.who}: expected the status queued or idempotent_hit, "
            f"found {calls.said(told.get('status'))}",
            "see that the URL is a webhook's",
            answer.status,
        )
    publication, note = (told.get(name) for name in ("publication_id", "note"))
    return Taken(
        status, calls.said(publication) if publication else None, calls.said(note) if note else None
    )
