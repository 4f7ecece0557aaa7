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

From 6 on it is `recording.py`. Deliveries that come at once go through each step together, in one
transaction, so that a step's statement serves them all. Two that are the same are kept apart: by turns in
one process, by the webhook's row, which 5 locks, between processes. What is refused before 5 writes nothing,
and step 1 bounds how often.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from platform_server import deliveries, recording
from platform_server.answers import Answer, Reason, refused
from platform_server.deliveries import AnyRow
from platform_server.identifiers import new_id
from platform_server.metrics import LIMITED
from platform_server.rates import Rate
from platform_server.recording import Taken
from platform_server.signatures import SignatureHeaders, is_signed
from platform_server.state_folder import Platform
from platform_server.tables import WebhookStatus
from platform_server.webhooks import PREFIX, secrets_of

_NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Received:
    """A delivery as it came: the webhook's id as the path has it, the body's bytes, and from where."""

    webhook_id: str
    body: bytes
    headers: SignatureHeaders
    address: str


@dataclass(frozen=True, slots=True)
class _Turn:
    webhook_id: UUID
    received: Received


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
        answer = await self._platform.database.write_together(
            self._answer, _Turn(_uuid(received.webhook_id), received)
        )
        if answer.reason in (Reason.UNKNOWN_WEBHOOK, Reason.BAD_SIGNATURE):
            self._refusals.take(received.address)
        elif answer.reason is Reason.RATE_LIMITED:
            LIMITED.labels("deliveries").inc()
        return answer

    def _answer(self, connection: Connection, group: Sequence[_Turn]) -> Sequence[Answer]:
        """Steps 2 to 10 of deliveries that came together. Only the thread that runs them touches the rate
        of deliveries; when the database asks for them again they count again, which is rare.
        """
        at = self._platform.clock()
        webhooks = deliveries.find_webhooks(connection, {each.webhook_id for each in group})  # 2
        answers: dict[int, Answer] = {}
        taken: list[Taken] = []
        for place, each in enumerate(group):
            refusal = self._refusal(webhooks.get(each.webhook_id), each, at)
            if refusal is None:
                received = each.received
                taken.append(Taken.of(place, each.webhook_id, received.headers.webhook_id, received.body))
            else:
                answers[place] = refusal
        if taken:
            deliveries.count(connection, Counter(each.key.webhook_id for each in taken), at)  # 5
            plain_delivery = self._platform.settings.schedule.plain_delivery
            answers |= recording.record(connection, taken, plain_delivery, at)
        return [answers[place] for place in range(len(group))]

    def _refusal(self, row: AnyRow | None, turn: _Turn, at: datetime) -> Answer | None:
        """Steps 3 and 4 of a delivery to the webhook of that row; None when it may go on."""
        sealer = self._platform.sealer
        known = row is not None and row.status is WebhookStatus.ACTIVE
        valid = secrets_of(row, sealer, at) if row is not None and known else []
        while len(valid) < 2:  # 3: always as many secrets, whether there is a webhook, or a rotation, or not
            valid.append(sealer.open(self._nobodys, _NOBODY))
        signed = is_signed(
            turn.received.headers,
            turn.received.body,
            valid,
            at,
            self._platform.settings.schedule.webhook_tolerance,
            plain_allowed=row is None or row.plain_signatures,
        )
        if not known:
            return refused(Reason.UNKNOWN_WEBHOOK, "no webhook takes deliveries here")
        if not signed:
            return refused(
                Reason.BAD_SIGNATURE,
                "the body must be signed with this webhook's secret, and not more than 5 minutes ago",
            )
        if not self._deliveries.take(turn.webhook_id):  # 4
            return refused(
                Reason.RATE_LIMITED, "too many deliveries to this webhook", wait=self._deliveries.wait
            )
        return None


def _uuid(text: str) -> UUID:
    """The id that a path has; for one that is none, an id that no webhook has."""
    try:
        return UUID(text)
    except ValueError:
        return new_id()
