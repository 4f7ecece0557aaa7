"""The manager, pipelines, operators and time in any order: what must never happen does not.

Beside the rows themselves the machine keeps a small model: what may be the default of each platform after
each step. Whatever changes a default is the step that says so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import defaults, node_platforms, outcomes
from platform_server.errors import Conflict, Refused
from platform_server.manager import agents, approvals, autonomy, policies
from platform_server.manager.autonomy import Update
from platform_server.manager.tick import tick
from platform_server.permissions import Caller
from platform_server.settings import Schedule
from platform_server.state_folder import Platform, initialise, open_platform
from platform_server.states import Status
from platform_server.tables import (
    Agent,
    AgentStatus,
    ApprovalRequest,
    Category,
    Event,
    NodePlatform,
    Policy,
    Publication,
    RequestStatus,
    User,
)
from supply_chain.verify.image import Verified
from tests.platform_server.clock import START, Clock
from tests.platform_server.invariants import broken
from tests.platform_server.rows import node_platform, queued

_Result = TypeVar("_Result")

EXAMPLES = 30
STEPS = 40
WHICH = st.integers(0, 1)
ROWS = st.integers(0, 5)
ACTING = {Policy.AUTO_APPROVE, Policy.NOTIFY_AND_PROCEED}


class Managed(RuleBasedStateMachine):
    """Two node platforms of one account, and its manager."""

    made: Path

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory())) / "state"
        shutil.copytree(self.made, folder)
        self.clock = Clock()
        self.platform: Platform = open_platform(folder, clock=self.clock)
        self.stack.callback(self.platform.database.close)
        user = self.read(lambda on: on.scalars(select(User)).one())
        self.caller = Caller(user.account_id, user.name, ["*"], user_id=user.id)
        self.platforms = [self.write(partial(self._make, name)) for name in ("debian", "router")]
        self.count = 0
        # decided requests as they were first seen
        self.decided: dict[UUID, dict[str, Any]] = {}

    def teardown(self) -> None:
        self.stack.close()

    # what happens

    @initialize(policy=st.sampled_from(Policy))
    def begin(self, policy: Policy) -> None:
        """Each platform has its default and one newer image, about which the policy decides."""
        self.set_policy(None, policy)
        for which in (0, 1, 0, 1):
            self.publish(which)

    @rule(which=WHICH)
    def publish(self, which: int) -> None:
        """A pipeline reports a new image, which holds. Only a first image becomes the default by that."""
        before = self.defaults()
        self.count += 1
        self.clock.pass_by(seconds=1)
        place = {"account_id": self.caller.account_id, "node_platform_id": self.platforms[which]}
        self.write(lambda on: queued(on, self.clock(), **place))
        turn = self.write(lambda on: outcomes.next_turn(on, Schedule(), self.clock()))
        assert turn is not None
        row = self.write(lambda on: outcomes.publish(on, turn.lease, _verified(self.count), self.clock()))
        assert row.status is Status.PUBLISHED
        if before[which] is not None:
            assert self.defaults() == before

    @rule()
    def turn(self) -> None:
        """The manager's turn. What it may do is known before: by policy, status and what is there."""
        before, asked, paused = self.defaults(), self.pending(), self.is_paused()
        effective = [self.policy(which) for which in range(2)]
        due = {each.id for each in asked if each.expires_at <= self.clock()}
        anyio.run(tick, self.platform)
        after, now = self.defaults(), {each.id: each for each in self.requests()}
        for which in range(2):
            if paused or effective[which] not in ACTING:
                assert after[which] == before[which]
            elif after[which] != before[which]:
                newest = self.published(which)[-1]
                assert after[which] == newest.id
        new = [each for each in self.pending() if each.id not in {one.id for one in asked}]
        for each in new:
            which = self.platforms.index(each.node_platform_id)
            assert not paused
            assert effective[which] is Policy.REQUIRE_APPROVAL
            assert each.publication_id == self.published(which)[-1].id
            assert not self._was_rejected(each)
        for each in asked:
            if each.id in due:
                assert now[each.id].status is RequestStatus.REJECTED
            elif paused:
                assert now[each.id].status is RequestStatus.PENDING

    @rule()
    def turn_again(self) -> None:
        """A turn right after another one finds nothing left to do."""
        anyio.run(tick, self.platform)
        before = self.defaults(), self.events()
        anyio.run(tick, self.platform)
        assert (self.defaults(), self.events()) == before

    @rule(which=WHICH | st.none(), policy=st.sampled_from(Policy) | st.none())
    def set_policy(self, which: int | None, policy: Policy | None) -> None:
        before = self.defaults()
        platform_id = None if which is None else self.platforms[which]
        update = Update(Category.PROMOTE, policy, platform_id)
        self.write(lambda on: autonomy.update(on, self.caller, [update], self.clock()))
        assert self.defaults() == before
        if which is not None and policy is not None:
            assert self.policy(which) is policy

    @rule(status=st.sampled_from(AgentStatus))
    def set_status(self, status: AgentStatus) -> None:
        self.write(lambda on: agents.set_status(on, self.caller, None, status, self.clock()))

    @rule(row=ROWS)
    def approve(self, row: int) -> None:
        """Somebody approves any request: it is done, or nothing is."""
        request = self._one(row)
        if request is None:
            return
        before = self.defaults(), self.requests_as_they_are()
        which = self.platforms.index(request.node_platform_id)
        published = {each.id for each in self.published(which)}
        may = (
            request.status is RequestStatus.PENDING
            and request.expires_at > self.clock()
            and not self.is_paused()
            and self.policy(which) is not Policy.BLOCK
            and request.publication_id in published
        )
        try:
            self.write(lambda on: approvals.approve(on, self.caller, request.id, "why", self.clock()))
        except Conflict:
            assert (self.defaults(), self.requests_as_they_are()) == before
            return
        assert may
        assert self.defaults()[which] == request.publication_id != before[0][which]
        assert self.defaults()[1 - which] == before[0][1 - which]

    @rule(row=ROWS)
    def reject(self, row: int) -> None:
        request = self._one(row)
        if request is not None:
            before = self.defaults()
            self.attempt(lambda on: approvals.reject(on, self.caller, request.id, None, self.clock()))
            assert self.defaults() == before

    @rule(which=WHICH, row=ROWS)
    def set_default(self, which: int, row: int) -> None:
        """An operator chooses: a decision that the manager does not undo."""
        rows = self.published(which)
        if not rows:
            return
        chosen = rows[row % len(rows)].id
        if self.policy(which) is Policy.BLOCK:
            with pytest.raises(Conflict):
                self.write(lambda on: defaults.set_default(on, self.caller, chosen, None, self.clock()))
            return
        before = self.defaults()[which]
        self.write(lambda on: defaults.set_default(on, self.caller, chosen, None, self.clock()))
        assert self.defaults()[which] == chosen
        if chosen != before:
            anyio.run(tick, self.platform)
            assert self.defaults()[which] == chosen
            if not self.is_paused():
                assert self.platforms[which] not in {each.node_platform_id for each in self.pending()}

    @rule(which=WHICH)
    def roll_back(self, which: int) -> None:
        platform_id = self.platforms[which]
        self.attempt(lambda on: defaults.rollback(on, self.caller, platform_id, None, self.clock()))

    @rule(which=WHICH, count=st.integers(1, 3))
    def set_retention(self, which: int, count: int) -> None:
        platform_id = self.platforms[which]
        self.write(
            lambda on: node_platforms.set_retention(on, self.caller, platform_id, count, self.clock())
        )

    @rule(minutes=st.sampled_from([1, 30, 61, 12 * 60, 13 * 60]))
    def wait(self, minutes: int) -> None:
        self.clock.pass_by(minutes=minutes)

    # what holds after each step

    @invariant()
    def nothing_is_broken(self) -> None:
        assert broken(self.platform) == []

    @invariant()
    def what_was_decided_stays_so(self) -> None:
        now = self.requests_as_they_are()
        for request_id, columns in self.decided.items():
            assert now[request_id] == columns
        self.decided = {
            key: columns for key, columns in now.items() if columns["status"] is not RequestStatus.PENDING
        }

    @invariant()
    def one_question_a_key(self) -> None:
        keys = [each.natural_key for each in self.pending()]
        assert len(keys) == len(set(keys))

    # means

    def read(self, work: Callable[[Session], _Result]) -> _Result:
        return self.platform.database.read_now(work)

    def write(self, work: Callable[[Session], _Result]) -> _Result:
        return self.platform.database.write_now(work)

    def _make(self, name: str, session: Session) -> UUID:
        return node_platform(session, self.clock(), name).id

    def attempt(self, work: Callable[[Session], object]) -> None:
        with suppress(Refused):
            self.write(work)

    def defaults(self) -> list[UUID | None]:
        def work(on: Session) -> list[UUID | None]:
            return [on.get_one(NodePlatform, each).default_publication_id for each in self.platforms]

        return self.read(work)

    def published(self, which: int) -> list[Publication]:
        """What is published, the newest last."""
        query = (
            select(Publication)
            .where(
                Publication.node_platform_id == self.platforms[which],
                Publication.status == Status.PUBLISHED,
            )
            .order_by(Publication.published_at)
        )
        return self.read(lambda on: list(on.scalars(query)))

    def requests(self) -> list[ApprovalRequest]:
        query = select(ApprovalRequest).order_by(ApprovalRequest.id)
        return self.read(lambda on: list(on.scalars(query)))

    def requests_as_they_are(self) -> dict[UUID, dict[str, Any]]:
        columns = ApprovalRequest.__table__.columns.keys()
        return {each.id: {name: getattr(each, name) for name in columns} for each in self.requests()}

    def pending(self) -> list[ApprovalRequest]:
        return [each for each in self.requests() if each.status is RequestStatus.PENDING]

    def events(self) -> int:
        return len(self.read(lambda on: on.scalars(select(Event.id)).all()))

    def is_paused(self) -> bool:
        return self.read(lambda on: on.scalars(select(Agent)).one()).status is AgentStatus.PAUSED

    def policy(self, which: int) -> Policy:
        return self.read(
            partial(
                policies.effective,
                category=Category.PROMOTE,
                account_id=self.caller.account_id,
                platform_id=self.platforms[which],
            )
        )

    def _one(self, row: int) -> ApprovalRequest | None:
        """One of the requests, counted from the newest."""
        found = self.requests()
        return found[-1 - row % len(found)] if found else None

    def _was_rejected(self, request: ApprovalRequest) -> bool:
        """Whether the same was rejected within the hour before."""
        return any(
            each.natural_key == request.natural_key
            and each.status is RequestStatus.REJECTED
            and each.decided_at is not None
            and request.created_at - each.decided_at < timedelta(hours=1)
            for each in self.requests()
        )


def _verified(number: int) -> Verified:
    """What a verifier finds about an image of its own."""
    digest = f"sha256:{number:064x}"
    return Verified(
        image=f"registry.example/os/debian@{digest}",
        digest=digest,
        identity="https://git.example/org/image",
        issuer="https://git.example",
        signed_at=START,
        arch="amd64",
        kernel_version="6.12.0",
        composefs_digest=digest,
        size=1000 + number,
        layers_read=True,
        packages=1,
        builder_id="https://git.example/org/image",
        git_shas=(f"{number:040x}",),
        signature=digest,
        sbom=digest,
        provenance=digest,
        ignored=(),
    )


@pytest.mark.timeout(900)
def test_no_order_of_steps_breaks_what_must_hold(tmp_path: Path) -> None:
    initialise(tmp_path / "state", START)
    Managed.made = tmp_path / "state"
    run_state_machine_as_test(
        Managed,
        settings=settings(
            # the same orders each time, as in test_life_machine.py
            derandomize=True,
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
