"""Every action of a publication's life in any order: what must never happen does not.

Rules are what pipelines, workers, operators, nodes, time and registries do, through the functions that the
routes call. After each step the whole database is compared with what was there before it: published rows are
as they were, only the transitions of the state machine happened, each is told by its event, and images that
are the default or booted are whole in their registry.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import (
    defaults,
    node_platforms,
    outcomes,
    queue,
    registries,
    sweeps,
)
from platform_server.errors import Refused
from platform_server.events import Kind
from platform_server.outcomes import NotNow
from platform_server.permissions import EVERYTHING, Caller
from platform_server.settings import Registries, Schedule, Settings
from platform_server.state_folder import Platform
from platform_server.states import KEPT, RULES, Status
from platform_server.tables import Event, Instance, InstanceStatus, NodePlatform, Publication
from platform_server.verifier import Rejected
from supply_chain.registry import Policy, open_repository
from supply_chain.verify.image import Verified
from tests.platform_server.clock import START, Clock
from tests.platform_server.made import Made
from tests.platform_server.rows import first_account_id, node_platform, queued
from tests.supply_chain.registry_server import Fault, Planned, RegistryServer, registry
from tests.supply_chain.stored import store

_Result = TypeVar("_Result")

REPOSITORY = "os/debian"
IMAGES = 4
EXAMPLES = 60
STEPS = 30
ROWS = st.integers(0, 9)
# The event of a row that came to a state.
TOLD_BY: Mapping[Status, Collection[Kind]] = {
    Status.PUBLISHED: {Kind.PUBLISHED, Kind.ROLLED_BACK},
    Status.FAILED: {Kind.PUBLISH_FAILED},
    Status.RETIRED: {Kind.RETENTION_SWEPT},
    Status.PURGED: {Kind.RETENTION_SWEPT},
}
# What is fixed once a row was published.
FIXED = (
    "account_id",
    "node_platform_id",
    "arch",
    "git_sha",
    "oci_ref",
    "oci_digest",
    "sha256",
    "size_bytes",
    "cosign_verified",
    "certificate_identity",
    "certificate_issuer",
    "sbom_digest",
    "provenance_digest",
    "published_at",
    "verified_at",
    "error_message",
)


@dataclass(frozen=True)
class Image:
    """An image with its referrers, as a registry keeps it."""

    digest: str
    manifests: Mapping[str, tuple[str, bytes]]
    blobs: Mapping[str, bytes]


class Life(RuleBasedStateMachine):
    """Two platforms of one account that take images from one repository."""

    made: Made
    server: RegistryServer
    images: Sequence[Image]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory())) / "state"
        self.clock = Clock()
        settings = Settings(workers=0, registries=Registries(plain_http=True))
        self.platform: Platform = self.made.copied(folder).open(settings, self.clock)
        self.stack.callback(self.platform.database.close)
        self.caller = self.read(lambda on: Caller(first_account_id(on), "admin", [EVERYTHING]))
        self._heal()
        self.server.repos.clear()
        self.rows: dict[UUID, dict[str, Any]] = {}
        self.events = 0
        self.platforms = [self.write(partial(self._make, name)) for name in ("debian", "router")]

    def teardown(self) -> None:
        self.stack.close()

    # what happens

    @initialize(numbers=st.lists(st.integers(0, IMAGES - 1), min_size=2, max_size=4, unique=True))
    def begin(self, numbers: list[int]) -> None:
        """Both platforms have published the same images, and a node boots the first of one of them."""
        for number in numbers:
            for which in range(2):
                self.publish(which, number)
            if number == numbers[0]:
                self.boot(0)

    @rule(which=st.integers(0, 1), number=st.integers(0, IMAGES - 1))
    def publish(self, which: int, number: int) -> None:
        """A pipeline reports an image that holds, and a worker takes what has waited longest."""
        self.report(which, number, pinned=False)
        self.verify("holds")

    @rule(which=st.integers(0, 1), forbidden=st.booleans())
    def grow_old(self, which: int, forbidden: bool) -> None:
        """A week without a sweep, and then one."""
        self.clock.pass_by(days=8)
        self.sweep(which, None, int(forbidden))

    @rule(which=st.integers(0, 1), number=st.integers(0, IMAGES - 1), pinned=st.booleans())
    def report(self, which: int, number: int, pinned: bool) -> None:
        """A pipeline pushes an image, if it is not there, and reports it."""
        self._push(number)
        # Of two that came at the same time, nobody knows which is taken first.
        self.clock.pass_by(seconds=1)
        digest = self.images[number].digest
        values = {
            "account_id": self.caller.account_id,
            "node_platform_id": self.platforms[which],
            "oci_ref": f"{self.server.host}/{REPOSITORY}:v{number}",
            "oci_digest": digest if pinned else None,
            "payload": {"number": number},
        }
        self.write(lambda on: queued(on, self.clock(), **values))

    @rule(outcome=st.sampled_from(["holds", "holds", "holds", "does not hold", "cut off"]))
    def verify(self, outcome: str) -> None:
        """A worker's turn, and what it finds if it is not killed before it says so."""
        turn = self.write(lambda on: outcomes.next_turn(on, Schedule(), self.clock()))
        if turn is None or turn.task is None or outcome == "cut off":
            return
        lease, task = turn.lease, turn.task
        try:
            if isinstance(task, Rejected):
                raise task
            number = task.row.payload["number"]
            if outcome == "does not hold" or not self._is_whole(number):
                raise Rejected("verification_failed", "expected a signature, got none")
            verified = self._verified(number)
            self.write(lambda on: outcomes.publish(on, lease, verified, self.clock()))
        except Rejected as error:
            refused = error
            self.write(lambda on: outcomes.fail(on, lease, refused, self.clock()))
        except NotNow as error:
            why = str(error)
            again = self.clock() + timedelta(minutes=5)
            self.write(lambda on: queue.put_back(on, lease, again, why))

    @rule(row=ROWS)
    def set_default(self, row: int) -> None:
        """An operator, with any row."""
        if (one := self._one(row)) is not None:
            self.attempt(lambda on: defaults.set_default(on, self.caller, one, None, self.clock()))

    @rule(row=st.none() | ROWS, which=st.integers(0, 1))
    def roll_back(self, row: int | None, which: int) -> None:
        target = None if row is None else self._one(row)
        self.attempt(
            lambda on: defaults.rollback(on, self.caller, self.platforms[which], target, self.clock())
        )

    @rule(which=st.integers(0, 1), count=st.integers(-1, 4))
    def set_retention(self, which: int, count: int) -> None:
        self.attempt(
            lambda on: node_platforms.set_retention(
                on, self.caller, self.platforms[which], count, self.clock()
            )
        )

    @rule(which=st.integers(0, 1))
    def boot(self, which: int) -> None:
        """A new node boots the default."""

        def work(session: Session) -> None:
            platform = session.get_one(NodePlatform, self.platforms[which])
            if platform.default_publication_id is not None:
                session.add(
                    Instance(
                        account_id=platform.account_id,
                        node_platform_id=platform.id,
                        publication_id=platform.default_publication_id,
                        name="node",
                        created_at=self.clock(),
                    )
                )

        self.write(work)

    @rule()
    def terminate(self) -> None:
        """The oldest node goes."""

        def work(session: Session) -> None:
            node = session.scalars(
                select(Instance).where(Instance.status == InstanceStatus.RUNNING).order_by(Instance.id)
            ).first()
            if node is not None:
                node.status = InstanceStatus.TERMINATED

        self.write(work)

    @rule(days=st.sampled_from([0, 1, 4, 8]), hours=st.integers(0, 3))
    def wait(self, days: int, hours: int) -> None:
        self.clock.pass_by(days=days, hours=hours, minutes=1)

    @rule()
    def report_stuck(self) -> None:
        anyio.run(sweeps.tell_of_stuck, self.platform)

    @rule(which=st.integers(0, 1), cut=st.none() | st.integers(0, 40), forbidden=st.sampled_from([0, 0, 1]))
    def sweep(self, which: int, cut: int | None, forbidden: int) -> None:
        """A sweep; cut off at a request, or of a registry that forbids deleting."""
        last = None if cut is None else self.server.count + cut

        def is_cut(method: str, path: str) -> bool:
            return last is not None and self.server.count > last

        self.server.faults = [Planned(Fault.CUT_AFTER, where=is_cut, times=10_000)]
        self.server.deletes = set() if forbidden else {"manifests", "blobs"}
        grace = self.platform.settings.schedule.grace
        anyio.run(sweeps.sweep, self.platform, self.platforms[which], grace)
        self._heal()

    # what holds after each step

    @invariant()
    def only_transitions_happened_and_each_is_told(self) -> None:
        now = {row.id: _columns(row) for row in self._rows()}
        events = self.read(lambda on: on.scalars(select(Event).order_by(Event.id)).all())
        assert len(events) >= self.events, "an event was lost"
        assert self.rows.keys() <= now.keys(), "a row was lost"
        told = events[self.events :]
        for row_id, after in now.items():
            before = self.rows.get(row_id, {**after, "status": Status.QUEUED, "published_at": None})
            if before["status"] != after["status"]:
                assert _leads(before["status"], after["status"]), (before["status"], after["status"])
                _check_told(before, after, told)
            if before["published_at"] is not None:
                assert {name: before[name] for name in FIXED} == {name: after[name] for name in FIXED}
        self.rows, self.events = now, len(events)

    @invariant()
    def no_event_tells_what_did_not_happen(self) -> None:
        swept = self.read(
            lambda on: [
                (event.payload["publication_id"], event.payload["action"])
                for event in on.scalars(select(Event).where(Event.kind == Kind.RETENTION_SWEPT))
            ]
        )
        purged = Counter(publication_id for publication_id, action in swept if action == "purged")
        expected = {str(row.id) for row in self._rows() if row.status is Status.PURGED}
        assert purged == Counter(expected)

    @invariant()
    def images_that_are_needed_are_whole(self) -> None:
        needed = self.read(_needed)
        for row in needed:
            assert row.status in KEPT
            assert row.published_at is not None
            assert row.purge_started_at is None
        for row in self._rows():
            if row.status in KEPT and row.published_at is not None and row.purge_started_at is None:
                assert self._is_whole(row.payload["number"]), f"the image of a {row.status} row"

    @invariant()
    def the_default_is_published(self) -> None:
        published = {row.id for row in self._rows() if row.status is Status.PUBLISHED}
        for platform_id in self.platforms:
            row = self.read(partial(_platform, platform_id))
            if row.default_publication_id is not None:
                assert row.default_publication_id in published

    @invariant()
    def an_image_is_published_once_a_platform(self) -> None:
        kept = Counter(
            (row.node_platform_id, row.oci_digest)
            for row in self._rows()
            if row.status in KEPT and row.published_at is not None
        )
        assert all(count == 1 for count in kept.values())

    # means

    def attempt(self, work: Callable[[Session], object]) -> None:
        """Something that may be refused, and changes nothing then."""
        with suppress(Refused):
            self.write(work)

    def read(self, work: Callable[[Session], _Result]) -> _Result:
        return self.platform.database.read_now(work)

    def write(self, work: Callable[[Session], _Result]) -> _Result:
        return self.platform.database.write_now(work)

    def _heal(self) -> None:
        self.server.faults, self.server.deletes = [], {"manifests", "blobs"}

    def _make(self, name: str, session: Session) -> UUID:
        fields = {"trusted_registries": [self.server.host], "disk_image_retention_count": 1}
        return node_platform(session, self.clock(), name, **fields).id

    def _rows(self) -> list[Publication]:
        return self.read(lambda on: list(on.scalars(select(Publication).order_by(Publication.id))))

    def _one(self, row: int) -> UUID | None:
        """One of the rows, counted from the newest."""
        ids = sorted(self.rows, reverse=True)
        return ids[row % len(ids)] if ids else None

    def _push(self, number: int) -> None:
        image, repo = self.images[number], self.server.repo(REPOSITORY)
        repo.blobs |= image.blobs
        repo.manifests |= image.manifests
        repo.tags[f"v{number}"] = image.digest

    def _is_whole(self, number: int) -> bool:
        image, repo = self.images[number], self.server.repo(REPOSITORY)
        return image.manifests.keys() <= repo.manifests.keys() and image.blobs.keys() <= repo.blobs.keys()

    def _verified(self, number: int) -> Verified:
        """What a verifier finds about an image."""
        image = self.images[number]
        _, sbom, provenance = image.manifests
        return Verified(
            image=f"{self.server.host}/{REPOSITORY}@{image.digest}",
            digest=image.digest,
            identity="https://git.example/org/image",
            issuer="https://git.example",
            signed_at=START,
            arch="amd64",
            kernel_version="6.12.0",
            composefs_digest=f"sha256:{number:064x}",
            size=sum(map(len, image.blobs.values())),
            layers_read=True,
            packages=1,
            builder_id="https://git.example/org/image",
            git_shas=(f"{number:040x}",),
            signature=sbom,
            sbom=sbom,
            provenance=provenance,
            ignored=(),
        )


def _leads(source: Status, target: Status) -> bool:
    """Whether transitions lead from one state to the other."""
    seen, pending = {source}, [source]
    while pending:
        at = pending.pop()
        for after in {each.target for each in RULES.values() if at in each.sources} - seen:
            seen.add(after)
            pending.append(after)
    return target in seen


def _check_told(before: dict[str, Any], after: dict[str, Any], told: Sequence[Event]) -> None:
    """Each new state has one event that names the row, but for those that nothing is to be told of."""
    one, status = str(after["id"]), after["status"]
    kinds = [event.kind for event in told if event.payload["publication_id"] == one]
    left = [event.kind for event in told if event.payload.get("prior_publication_id") == one]
    if status is Status.RETIRED and Kind.ROLLED_BACK in left:
        return
    if status is Status.FAILED and after["duplicate_of_id"] is not None:
        return
    expected = TOLD_BY.get(status)
    if expected is not None:
        found = [kind for kind in kinds if kind in expected]
        assert len(found) == 1, f"{before['status']} to {status}: told {kinds}"


def _columns(row: Publication) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in Publication.__table__.columns}


def _platform(platform_id: UUID, session: Session) -> NodePlatform:
    return session.get_one(NodePlatform, platform_id)


def _needed(session: Session) -> Sequence[Publication]:
    """What new nodes boot, and what nodes that run do."""
    default = select(NodePlatform.default_publication_id)
    booted = select(Instance.publication_id).where(Instance.status == InstanceStatus.RUNNING)
    query = select(Publication).where(Publication.id.in_(default) | Publication.id.in_(booted))
    return session.scalars(query).all()


async def _images(server: RegistryServer) -> Sequence[Image]:
    """Each image alone in a repository, and what it is made of there."""
    made = []
    for number in range(IMAGES):
        async with open_repository(server.host, f"made/{number}", plain_http=True) as repository:
            stored = await store(repository, f"image {number}")
        there = server.repo(f"made/{number}")
        manifests = {digest: there.manifests[digest] for digest in (stored.image, *stored.referrers)}
        made.append(Image(stored.image, manifests, dict(there.blobs)))
    return made


@pytest.mark.timeout(900)
def test_no_order_of_actions_breaks_what_must_hold(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "POLICY", Policy(attempts=1, silence=5.0))
    with registry() as server:
        Life.made, Life.server = made, server
        Life.images = anyio.run(_images, server)
        run_state_machine_as_test(
            Life,
            settings=settings(
                # the same orders each time: a failure takes minutes to shrink, and is to be found again
                derandomize=True,
                max_examples=EXAMPLES if made.elsewhere is None else EXAMPLES // 5,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
