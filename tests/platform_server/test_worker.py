"""The verification worker: what holds is published, what does not fails with got and expected, and what
can't be judged is tried again; one outcome, whatever happens meanwhile.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import anyio
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from platform_server import outcomes, queue, worker
from platform_server.publications import newest
from platform_server.queue import LeaseLost
from platform_server.settings import Schedule, Settings
from platform_server.states import Status, Transition, move
from platform_server.tables import Job, Publication
from platform_server.verifier import verifier_of
from supply_chain.verify.image import Verified
from tests.platform_server.clock import Clock
from tests.platform_server.made import Made
from tests.platform_server.verifying import Trial
from tests.supply_chain.registry_server import Fault, Planned
from tests.supply_chain.verify.forge import IDENTITY, ISSUER
from tests.supply_chain.verify.signed_image import COMMIT


def _jobs(trial: Trial) -> int:
    return trial.read(lambda on: on.scalar(select(func.count(Job.id)))) or 0


def test_an_image_that_holds_is_published_with_what_was_found(trial: Trial, clock: Clock) -> None:
    signed = trial.images.push()
    publication_id = trial.report(git_sha=COMMIT)
    clock.pass_by(seconds=5)
    assert trial.work()
    row = trial.row(publication_id)
    assert row.status is Status.PUBLISHED
    assert row.cosign_verified
    assert row.oci_digest == signed.image.digest
    assert row.sha256 == signed.image.digest.removeprefix("sha256:")
    assert row.size_bytes == sum(len(blob) for blob in signed.image.blobs.values())
    assert (row.certificate_identity, row.certificate_issuer) == (IDENTITY, ISSUER)
    assert row.verifying_at == row.verified_at == row.published_at == clock()
    assert row.error_message is None
    assert {row.sbom_digest, row.provenance_digest} < set(trial.images.server.repo("os/debian").manifests)
    assert _jobs(trial) == 0
    assert not trial.work()


def test_the_first_publication_becomes_the_default_and_later_ones_do_not(trial: Trial) -> None:
    trial.images.push()
    first = trial.verify()
    assert trial.platform_row().default_publication_id == first.id
    trial.images.push("second", commit="2" * 40)
    second = trial.verify()
    assert second.status is Status.PUBLISHED
    assert trial.platform_row().default_publication_id == first.id
    shown = trial.read(lambda on: newest(on, trial.node_platform.id))
    assert shown.disk_image_publication_status == "published"
    assert shown.disk_image_oci_ref == trial.images.ref(second.oci_digest or "")


def test_publishing_is_an_event_with_the_facts(trial: Trial) -> None:
    trial.images.push()
    row = trial.verify()
    (event,) = trial.events()
    assert (event.kind, event.severity, event.source) == (
        "system.disk_image_published",
        "low",
        "disk_image_webhook",
    )
    assert event.correlation_id == row.correlation_id
    facts = {"git_sha": COMMIT, "sha256": row.sha256, "oci_ref": row.oci_ref, "is_default": True}
    assert event.payload.items() >= facts.items()
    assert event.payload["publication_id"] == str(row.id)
    assert event.payload["node_platform_id"] == str(trial.node_platform.id)


def test_a_failure_leaves_the_good_image_alone_and_is_an_event(trial: Trial) -> None:
    trial.images.push()
    good = trial.verify()
    error = trial.refused("verification_failed", trial.images.ref("missing"))
    assert "manifest" in error
    before, failed = trial.events()
    assert (failed.kind, failed.severity) == ("system.disk_image_publish_failed", "high")
    assert failed.payload["error_message"] == error
    assert failed.payload["reason"] == "verification_failed"
    assert before.payload["publication_id"] == str(good.id)
    platform = trial.platform_row()
    assert platform.default_publication_id == good.id
    shown = trial.read(lambda on: newest(on, platform.id))
    assert (shown.disk_image_publication_status, shown.disk_image_publication_error) == ("failed", error)
    assert shown.disk_image_oci_ref == trial.images.ref(good.oci_digest or "")


@pytest.mark.parametrize("field", ["cosign_identity_regexp", "cosign_issuer_regexp"])
def test_without_a_trust_policy_nothing_is_even_fetched(trial: Trial, field: str) -> None:
    trial.images.push()
    trial.change(**{field: None})
    error = trial.refused("no_trust_policy")
    assert f"found no {field}" in error
    assert trial.images.server.seen == []


def test_without_a_trust_every_image_is_refused(trial: Trial) -> None:
    trial.images.push()
    trial.verifier = verifier_of(None)
    assert "--trust" not in trial.refused("no_trust")


@pytest.mark.parametrize(
    ("claim", "said", "got"),
    [
        ("size_bytes", 5, "got 3"),
        ("git_sha", "b" * 40, f"got {COMMIT}"),
        ("git_sha", COMMIT[:8], f"got {COMMIT}"),
        ("arch", "arm64", "got amd64"),
        ("firmware_ref", "rpi4/1.0", "got no firmware"),
    ],
)
def test_each_thing_that_the_webhook_said_is_compared(trial: Trial, claim: str, said: Any, got: str) -> None:
    trial.images.push()
    error = trial.refused("claim_mismatch", **{claim: said})
    assert f"{claim}: expected {said}, {got}" in error


def test_what_the_webhook_said_rightly_holds(trial: Trial) -> None:
    signed = trial.images.push()
    size = sum(len(blob) for blob in signed.image.blobs.values())
    row = trial.verify(
        git_sha=COMMIT, oci_digest=signed.image.digest, sha256=signed.image.digest[7:], size_bytes=size
    )
    assert row.status is Status.PUBLISHED


def test_an_image_of_another_architecture_than_the_platforms_is_refused(trial: Trial) -> None:
    trial.images.push()
    trial.change(arch="arm64")
    assert "the platform's arch: expected arm64, got amd64" in trial.refused("claim_mismatch")


def test_an_image_that_is_published_closes_the_row_as_its_duplicate(trial: Trial) -> None:
    trial.images.push()
    first = trial.verify()
    requests = len(trial.images.server.seen)
    again = trial.verify()
    assert (again.status, again.duplicate_of_id) == (Status.FAILED, first.id)
    assert again.error_message == f"duplicate: {first.oci_digest} is publication {first.id}"
    assert len(trial.events()) == 1
    assert len(trial.images.server.seen) == requests + 1, "only the tag was resolved"
    shown = trial.read(lambda on: newest(on, trial.node_platform.id))
    assert shown.disk_image_publication_status == "published"


def test_another_image_of_a_published_commit_is_refused(trial: Trial) -> None:
    trial.images.push()
    first = trial.verify()
    trial.images.push("rebuilt")
    error = trial.refused("published_artifact_mismatch")
    assert f"commit {COMMIT}: expected {first.oci_digest}" in error
    assert trial.row(first.id).status is Status.PUBLISHED


def test_an_image_published_meanwhile_by_its_commit_alone_is_a_duplicate(trial: Trial) -> None:
    """The row that names the commit waits while one that names only the tag is published."""
    trial.images.push()
    waiting = trial.report(git_sha=COMMIT)
    trial.write(lambda on: setattr(on.get_one(Job, waiting), "available_at", trial.platform.clock() + DAY))
    first = trial.verify()
    assert (first.status, first.git_sha) == (Status.PUBLISHED, COMMIT)
    trial.write(lambda on: setattr(on.get_one(Job, waiting), "available_at", trial.platform.clock()))
    assert trial.work()
    assert trial.row(waiting).duplicate_of_id == first.id


DAY = timedelta(days=1)


# what says nothing about the image


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.BUSY, Fault.CUT_BEFORE, Fault.TOO_MANY])
def test_a_registry_that_fails_is_asked_again_later(trial: Trial, clock: Clock, fault: Fault) -> None:
    trial.images.push()
    trial.images.server.faults = [Planned(fault, times=3)]
    publication_id = trial.report()
    for _ in range(3):
        trial.work()
        clock.pass_by(hours=1)
        if trial.row(publication_id).status is Status.PUBLISHED:
            break
        assert trial.row(publication_id).status is Status.VERIFYING
    assert trial.row(publication_id).status is Status.PUBLISHED
    assert len(trial.events()) == 1


def test_a_registry_that_stays_away_ends_in_a_failure_that_says_so(trial: Trial, clock: Clock) -> None:
    trial.images.server.faults = [Planned(Fault.ERROR, times=1000)]
    publication_id = trial.report()
    waits = []
    for _ in range(4):
        assert trial.work()
        assert not trial.work(), "it waits"
        due = trial.due()
        assert due is not None
        waits.append((due - clock()).total_seconds())
        clock.time = due
    assert trial.work()
    row = trial.row(publication_id)
    assert (row.status, row.attempt_count) == (Status.FAILED, 5)
    assert row.error_message is not None
    assert row.error_message.startswith("unavailable: no verdict after 5 attempts")
    assert all(
        low <= wait <= high
        for wait, low, high in zip(waits, (7, 15, 30, 60), (15, 30, 60, 120), strict=True)
    )
    assert _jobs(trial) == 0


def test_a_tag_is_resolved_once_for_all_attempts(trial: Trial, clock: Clock) -> None:
    first = trial.images.push()
    trial.images.server.faults = [
        Planned(Fault.ERROR, where=lambda method, path: "/blobs/" in path, times=2)
    ]
    publication_id = trial.report()
    assert trial.work()
    assert trial.row(publication_id).oci_digest == first.image.digest
    trial.images.push("second", commit="2" * 40)
    clock.pass_by(hours=1)
    assert trial.work()
    row = trial.row(publication_id)
    assert (row.status, row.oci_digest) == (Status.PUBLISHED, first.image.digest)


def test_a_mistake_in_the_program_is_no_verdict(trial: Trial, clock: Clock) -> None:
    trial.images.push()
    publication_id = trial.report()

    async def breaks(*_: object) -> Verified:
        raise ZeroDivisionError

    real, trial.verifier = trial.verifier, breaks
    with pytest.raises(ExceptionGroup):
        trial.work()
    assert trial.row(publication_id).status is Status.VERIFYING
    assert not trial.work(), "the lease still runs"
    clock.pass_by(minutes=2)
    trial.verifier = real
    assert trial.work()
    assert trial.row(publication_id).status is Status.PUBLISHED


def test_whoever_dies_at_every_attempt_ends_in_a_failure(trial: Trial, clock: Clock) -> None:
    publication_id = trial.report()
    schedule = trial.platform.settings.schedule
    for _ in range(schedule.attempts):
        assert trial.write(lambda on: outcomes.next_turn(on, schedule, clock()))
        clock.pass_by(minutes=2)
    assert trial.work()
    row = trial.row(publication_id)
    assert row.error_message == "gave_up: no verdict after 5 attempts: cut off"
    assert (row.status, len(trial.events())) == (Status.FAILED, 1)


# leases


def test_a_slow_worker_whose_lease_ran_out_writes_nothing(trial: Trial, clock: Clock) -> None:
    trial.images.push()
    publication_id = trial.report()
    real = trial.verifier

    async def slow(*arguments: Any) -> Verified:
        verified = await real(*arguments)
        clock.pass_by(minutes=2)
        trial.verifier = real
        await worker.work(trial.platform, real)
        return verified

    trial.verifier = slow
    trial.work()
    row = trial.row(publication_id)
    assert (row.status, row.attempt_count) == (Status.PUBLISHED, 2)
    assert len(trial.events()) == 1


def test_a_lease_is_renewed_while_the_work_goes_on(
    trial: Trial, settings: Settings, clock: Clock, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    trial.images.push()
    publication_id = trial.report()
    real, due = trial.verifier, []
    platform = replace(
        trial.platform,
        settings=replace(settings, schedule=replace(Schedule(), lease=timedelta(milliseconds=60))),
    )

    async def slow(*arguments: Any) -> Verified:
        first = trial.due()
        clock.pass_by(seconds=1)
        await anyio.to_thread.run_sync(wait_for, lambda: trial.due() != first)
        due.append((first, trial.due()))
        return await real(*arguments)

    anyio.run(worker.work, platform, slow)
    assert trial.row(publication_id).status is Status.PUBLISHED
    ((first, renewed),) = due
    assert first is not None
    assert renewed is not None
    assert renewed - first >= timedelta(seconds=1)


def test_a_worker_that_is_stopped_leaves_its_job_for_the_next_at_once(trial: Trial, clock: Clock) -> None:
    trial.images.push()
    publication_id = trial.report()

    async def stopped() -> None:
        async with anyio.create_task_group() as tasks:

            async def verifier(*_: object) -> Verified:
                tasks.cancel_scope.cancel()
                await anyio.sleep_forever()
                raise AssertionError

            tasks.start_soon(worker.work, trial.platform, verifier)

    for _ in range(trial.platform.settings.schedule.attempts + 1):
        anyio.run(stopped)
    assert trial.work()
    assert trial.row(publication_id).status is Status.PUBLISHED


def test_a_lease_that_is_lost_before_the_digest_is_pinned(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found out no longer counts, and the worker goes on."""
    pin = outcomes.pin

    def late(session: Session, lease: queue.Lease, digest: str, at: datetime) -> bool:
        session.scalars(select(Job)).one().lease = None
        session.flush()
        return pin(session, lease, digest, at)

    trial.images.push()
    publication_id = trial.report()
    with monkeypatch.context() as patched:
        patched.setattr(outcomes, "pin", late)
        assert trial.work()
    assert trial.row(publication_id).status == "verifying"
    assert trial.row(publication_id).oci_digest is None


def test_work_ends_when_its_lease_is_lost(trial: Trial, settings: Settings) -> None:
    trial.report()
    platform = replace(
        trial.platform,
        settings=replace(settings, schedule=replace(Schedule(), lease=timedelta(milliseconds=60))),
    )
    trial.images.push()

    async def endless(*_: object) -> Verified:
        trial.write(lambda on: setattr(on.scalars(select(Job)).one(), "lease", None))
        await anyio.sleep_forever()
        raise AssertionError

    assert anyio.run(worker.work, platform, endless)
    assert trial.read(lambda on: on.scalars(select(Publication)).one()).status is Status.VERIFYING


def test_two_workers_never_hold_the_same_job(trial: Trial, clock: Clock) -> None:
    for number in range(5):
        trial.report(git_sha=f"{number:040x}")
    schedule = trial.platform.settings.schedule
    leases = [trial.write(lambda on: queue.claim(on, schedule, clock())) for _ in range(6)]
    held = [lease for lease in leases if lease is not None]
    assert len({lease.publication_id for lease in held}) == len(held) == 5
    stolen = replace(held[0], holder=held[1].holder)
    for act in (queue.check, queue.finish):
        with pytest.raises(LeaseLost):
            trial.write(partial(act, lease=stolen))


def test_a_job_of_a_row_that_is_done_is_only_removed(trial: Trial, clock: Clock) -> None:
    publication_id = trial.report()

    def retire(session: Any) -> None:
        row = session.get_one(Publication, publication_id)
        for transition in (Transition.MARK_FAILED, Transition.RETIRE):
            move(row, transition, clock())
            session.flush()

    trial.write(retire)
    assert trial.work()
    assert trial.row(publication_id).status is Status.RETIRED
    assert (_jobs(trial), trial.events()) == (0, [])


def test_the_served_platform_verifies_what_is_reported(
    trial: Trial, made: Made, settings: Settings, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    from tests.platform_server.serving import serving

    trial.images.push()
    publication_id = trial.report()
    working = replace(settings, workers=2, trust=trial.images.forge.trust.path)
    served = made.open(working, trial.platform.clock)
    with serving(served):
        wait_for(lambda: trial.row(publication_id).status is Status.PUBLISHED)
    served.database.close()


def test_a_proxys_login_page_is_no_verdict(trial: Trial, clock: Clock) -> None:
    trial.images.push()
    trial.images.server.faults = [Planned(Fault.HTML, where=lambda method, path: "/referrers/" in path)]
    publication_id = trial.report()
    assert trial.work()
    assert trial.row(publication_id).status is Status.VERIFYING
    clock.pass_by(hours=1)
    assert trial.work()
    assert trial.row(publication_id).status is Status.PUBLISHED


def test_a_full_temporary_folder_is_no_verdict(
    trial: Trial, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trial.images.push()
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "TemporaryFile", Full)
        publication_id = trial.report()
        trial.work()
    assert trial.row(publication_id).status is Status.VERIFYING
    clock.pass_by(hours=1)
    trial.work()
    assert trial.row(publication_id).status is Status.PUBLISHED


def test_a_clock_that_was_ahead_holds_nothing_up(trial: Trial, clock: Clock) -> None:
    """What was reported or put back while it was a year ahead is due when it is right again."""
    schedule = trial.platform.settings.schedule
    clock.pass_by(days=365)
    first, second = trial.report(), trial.report()
    lease = trial.write(lambda on: queue.claim(on, schedule, clock()))
    assert lease is not None
    assert lease.publication_id == first
    trial.write(lambda on: queue.put_back(on, lease, clock() + schedule.longest_retry, "away"))
    clock.pass_by(days=-365)
    found = [trial.write(lambda on: queue.claim(on, schedule, clock())) for _ in range(3)]
    assert [each and each.publication_id for each in found] == [second, first, None]


@pytest.mark.parametrize("longest", [Schedule().longest_retry, timedelta(days=2)])
def test_who_waits_on_purpose_is_left_alone(longest: timedelta, trial: Trial, clock: Clock) -> None:
    schedule = replace(trial.platform.settings.schedule, longest_retry=longest)
    trial.report()
    lease = trial.write(lambda on: queue.claim(on, schedule, clock()))
    assert lease is not None
    trial.write(lambda on: queue.put_back(on, lease, clock() + schedule.longest_retry, "away"))
    assert trial.write(lambda on: queue.claim(on, schedule, clock())) is None
