"""Deliveries that are recorded together are answered, and leave rows, as if they had come one after the
other, whatever they have in common.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from platform_server.answers import Answer
from platform_server.identifiers import new_id
from platform_server.recording import Taken, record
from platform_server.state_folder import Platform
from platform_server.states import KEPT, OPEN, Transition, move
from platform_server.tables import Delivery, Job, Publication, Webhook
from tests.platform_server.clock import Clock
from tests.platform_server.rows import first_account_id, node_platform, verified

DAY = timedelta(hours=24)


@dataclass(frozen=True)
class Sent:
    """A delivery: of webhook 0 or 1, with an id or none, for platform 0 or 1 or one that is not there."""

    webhook: int
    identifier: str | None
    platform: int
    commit: str | None
    digest: int | None
    broken: bool = False


SENT = st.builds(
    Sent,
    st.integers(0, 1),
    st.sampled_from([None, None, "one", "two"]),
    st.sampled_from([0, 0, 0, 1, 9]),
    st.sampled_from([None, "a", "b"]),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([False] * 9 + [True]),
)
# deliveries that come together, then what becomes of the open rows, and the hours until the next ones
HISTORY = st.lists(
    st.tuples(
        st.lists(SENT, min_size=1, max_size=8),
        st.lists(st.sampled_from([None, Transition.MARK_PUBLISHED, Transition.MARK_FAILED]), max_size=4),
        st.sampled_from([1, 25]),
    ),
    min_size=1,
    max_size=3,
)


class Side:
    """Two webhooks and two node platforms that nobody else uses."""

    def __init__(self, session: Session, name: str, at: datetime) -> None:
        account = first_account_id(session)
        self.name = name
        self.webhooks = [
            Webhook(account_id=account, label=label, label_key=label, secret=b"", secret_preview="",
                    created_at=at, updated_at=at)
            for label in (f"{name}-0", f"{name}-1")
        ]  # fmt: skip
        session.add_all(self.webhooks)
        self.platforms = [node_platform(session, at, f"{name}-{number}") for number in (0, 1)]
        # in the order in which they are first told of
        self.publications: list[UUID] = []

    def record(self, session: Session, sent: Sequence[Sent], at: datetime) -> list[Any]:
        """What the deliveries are told, by numbers of publications."""
        taken = [self._taken(place, each) for place, each in enumerate(sent)]
        answers = record(session.connection(), taken, DAY, at)
        return [self._told(answers[place]) for place in range(len(sent))]

    def settle(self, session: Session, fates: Sequence[Transition | None], at: datetime) -> None:
        """What becomes of the rows that are open, in their order."""
        rows = [session.get_one(Publication, each) for each in self.publications]
        for row, fate in zip([row for row in rows if row.status in OPEN], fates, strict=False):
            if fate is None:
                continue
            if fate is Transition.MARK_PUBLISHED:
                number = int((row.oci_digest or "sha256:7").removeprefix("sha256:"), 16)
                digest = f"sha256:{number:064x}"
                kept = [each for each in rows if each.status in KEPT and each is not row]
                if any(
                    each.node_platform_id == row.node_platform_id
                    and (each.oci_digest == digest or each.git_sha in (row.git_sha, None))
                    for each in kept
                ):
                    continue
                move(row, Transition.START_VERIFYING, at)
                session.flush()
                for column, value in (verified(number) | {"git_sha": row.git_sha}).items():
                    setattr(row, column, value)
            move(row, fate, at)
            session.flush()

    def rows(self, session: Session) -> list[Any]:
        """What is in the database, without what each row has for itself."""
        rows = [session.get_one(Publication, each) for each in self.publications]
        webhooks = [each.id for each in self.webhooks]
        platforms = [each.id for each in self.platforms]
        return [
            [
                (row.status, row.git_sha, row.oci_digest, platforms.index(row.node_platform_id))
                for row in rows
            ],
            session.scalar(select(func.count(Job.id)).where(Job.id.in_(self.publications))),
            session.scalar(
                select(func.count(Publication.id)).where(Publication.node_platform_id.in_(platforms))
            ),
            sorted(
                (webhooks.index(each.webhook_id), each.delivery_key.partition(":")[0], each.created_at,
                 self.publications.index(each.publication_id))
                for each in session.scalars(select(Delivery).where(Delivery.webhook_id.in_(webhooks)))
            ),
        ]  # fmt: skip

    def _taken(self, place: int, sent: Sent) -> Taken:
        fields = {
            "platform_slug": f"{self.name}-{sent.platform}",
            "oci_ref": "registry.example/os/debian:13",
            "git_sha": None if sent.commit is None else sent.commit * 40,
            "sha256": None if sent.digest is None else f"{sent.digest:064x}",
            "arch": "vax" if sent.broken else None,
        }
        body = json.dumps({name: value for name, value in fields.items() if value is not None})
        return Taken.of(place, self.webhooks[sent.webhook].id, sent.identifier, body.encode())

    def _told(self, answer: Answer) -> tuple[object, ...]:
        number = None
        if answer.publication_id is not None:
            if answer.publication_id not in self.publications:
                self.publications.append(answer.publication_id)
            number = self.publications.index(answer.publication_id)
        return answer.http, answer.status, answer.reason, number


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@example([([Sent(0, "one", 0, "a", 1), Sent(0, None, 0, "a", 1)], [], 1)])
@example([([Sent(0, None, 0, "a", 1), Sent(1, None, 0, "a", 2)], [Transition.MARK_PUBLISHED], 25)] * 2)
@example([([Sent(0, "one", 0, None, None), Sent(0, "one", 0, "a", None)], [], 1)])
@example(
    [([Sent(0, None, 0, "a", None), Sent(0, "two", 0, "a", 1), Sent(0, "two", 1, "b", 2)], [], 1)],
)
@given(history=HISTORY)
def test_together_is_as_one_by_one(platform: Platform, clock: Clock, history: Any) -> None:
    prefix = new_id()

    def work(session: Session) -> None:
        at = clock()
        together = Side(session, f"{prefix}-together", at)
        alone = Side(session, f"{prefix}-alone", at)
        session.flush()
        for sent, fates, hours in history:
            one_by_one = [alone.record(session, [each], at)[0] for each in sent]
            assert together.record(session, sent, at) == one_by_one
            for side in (together, alone):
                side.settle(session, fates, at)
            at += timedelta(hours=hours)
            assert together.rows(session) == alone.rows(session)

    platform.database.write_now(work)
