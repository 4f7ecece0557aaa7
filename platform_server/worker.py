"""The verification worker: claims a publication, verifies it, and writes the outcome.

What speaks against the image is an outcome. What speaks of a registry that is down, of the network or of
this program is none: the job is put back, later each time, and after the last attempt the publication fails
with the last error. A worker that is killed leaves the job to the next one.
"""

from __future__ import annotations

import logging
import random
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

import anyio
from structlog.contextvars import bind_contextvars, bound_contextvars, unbind_contextvars

from pipelines.errors import UsageError
from platform_server import outcomes, queue
from platform_server.errors import Unavailable
from platform_server.metrics import VERDICTS, VERIFICATION_SECONDS
from platform_server.outcomes import Task, Turn
from platform_server.queue import Lease, LeaseLost
from platform_server.registries import UntrustedRegistry
from platform_server.settings import Schedule
from platform_server.state_folder import Platform
from platform_server.tables import Publication
from platform_server.verifier import Rejected, Verifier, policy_of, source_of
from supply_chain.errors import (
    BrokenAnswer,
    InvalidReference,
    LayoutError,
    RegistryError,
    TrustError,
    VerificationError,
)
from supply_chain.verify.image import Verified
from supply_chain.verify.steps import Step, within

log = logging.getLogger(__name__)

# How long a worker that found nothing waits, in seconds.
_IDLE = 0.25
# A verification that takes longer is given up, and tried again.
_LONGEST = timedelta(hours=1)


async def run(platform: Platform, verifier: Verifier) -> None:
    """Verify whatever is queued, until cancelled."""
    async with anyio.create_task_group() as tasks:
        for _ in range(platform.settings.workers):
            tasks.start_soon(_run_one, platform, verifier)


async def _run_one(platform: Platform, verifier: Verifier) -> None:
    while True:
        try:
            worked = await work(platform, verifier)
        except Unavailable as error:
            log.warning("a verification could not be finished: %s", error.what)
            await anyio.sleep(error.retry_after)
            continue
        except Exception:
            # The database, or a mistake in here: the lease ends by itself, and others go on.
            log.exception("a verification could not be finished")
            worked = False
        if not worked:
            await anyio.sleep(_IDLE)


async def work(platform: Platform, verifier: Verifier) -> bool:
    """Verify one publication that is due; False when there is none."""
    schedule, write, clock = platform.settings.schedule, platform.database.write, platform.clock
    turn = await write(lambda on: outcomes.next_turn(on, schedule, clock()))
    if turn is None:
        return False
    with bound_contextvars(publication_id=str(turn.lease.publication_id)):
        await _work(platform, verifier, turn)
    return True


async def _work(platform: Platform, verifier: Verifier, turn: Turn) -> None:
    """Verify one publication, and write what came of it."""
    schedule, write, clock = platform.settings.schedule, platform.database.write, platform.clock
    lease, task = turn.lease, turn.task
    try:
        outcome = await _outcome(platform, verifier, task) if isinstance(task, Task) else task
        if isinstance(outcome, Verified):
            verified = outcome
            try:
                row = await write(lambda on: outcomes.publish(on, lease, verified, clock()))
                _note(row)
            except Rejected as rejected:
                outcome = rejected
            except outcomes.NotNow as error:
                outcome = _later(lease, str(error), schedule)
        if isinstance(outcome, Rejected):
            refused = outcome
            row = await write(lambda on: outcomes.fail(on, lease, refused, clock()))
            _note(row, refused.reason)
        elif isinstance(outcome, _Later):
            again = clock() + _delay(lease.attempt, schedule)
            await write(lambda on: queue.put_back(on, lease, again, outcome.why))
            VERDICTS.labels("none").inc()
            log.warning("no verdict, tried again later: %s", outcome.why)
    except LeaseLost:
        log.warning("another worker has the publication now")
    except anyio.get_cancelled_exc_class():
        # The platform is being stopped: whoever starts next goes on at once.
        with anyio.CancelScope(shield=True), suppress(LeaseLost):
            await write(lambda on: queue.release(on, lease, clock()))
        raise
    finally:
        unbind_contextvars("correlation_id")


def _note(row: Publication, reason: str | None = None) -> None:
    """Log and count an outcome."""
    bind_contextvars(correlation_id=row.correlation_id)
    duplicate = row.duplicate_of_id is not None
    VERDICTS.labels("duplicate" if duplicate else reason or row.status).inc()
    why = "" if row.error_message is None else f": {row.error_message}"
    log.info(
        "publication %s%s", row.status, why, extra={"oci_ref": row.oci_ref, "oci_digest": row.oci_digest}
    )


@dataclass(frozen=True, slots=True)
class _Later:
    """Nothing is known of the image."""

    why: str


_Outcome: TypeAlias = Verified | Rejected | _Later


def _later(lease: Lease, why: str, schedule: Schedule) -> _Later | Rejected:
    """Another attempt, if there is one left."""
    if lease.attempt < schedule.attempts:
        return _Later(why)
    return Rejected("unavailable", f"no verdict after {lease.attempt} attempts: {why}")


async def _outcome(platform: Platform, verifier: Verifier, task: Task) -> _Outcome | None:
    """What to write; None when it is written already. Raises LeaseLost."""
    schedule, lease = platform.settings.schedule, task.lease
    outcome: _Outcome | None = None
    lost = True
    bind_contextvars(correlation_id=task.row.correlation_id)
    log.info("verification begins", extra={"attempt": lease.attempt, "oci_ref": task.row.oci_ref})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_keep, platform, lease, tasks.cancel_scope)
        # what leaves the group would leave it as a group of exceptions
        with suppress(LeaseLost):
            try:
                with VERIFICATION_SECONDS.time(), anyio.fail_after(_LONGEST.total_seconds()):
                    outcome = await _judge(platform, verifier, task)
            except Rejected as rejected:
                outcome = rejected
            except (RegistryError, TimeoutError, OSError) as error:
                outcome = _later(lease, str(error) or type(error).__name__, schedule)
            lost = False
        tasks.cancel_scope.cancel()
    if lost:
        raise LeaseLost
    return outcome


async def _judge(platform: Platform, verifier: Verifier, task: Task) -> Verified | None:
    """What is known of the image; None when it turned out to be published already. Raises Rejected."""
    row, settings = task.row, platform.settings.registries
    try:
        policy = policy_of(task.platform)
        async with source_of(row, task.platform, settings, platform.uploads) as source:
            if row.oci_digest is None:
                with within(Step.MANIFEST):
                    # from here on the source gives this image, whatever becomes of its tag
                    digest = (await source.image()).descriptor.digest
                if not await platform.database.write(
                    lambda on: outcomes.pin(on, task.lease, digest, platform.clock())
                ):
                    VERDICTS.labels("duplicate").inc()
                    log.info("publication failed: another has its image", extra={"oci_digest": digest})
                    return None
                row.oci_digest = digest
            return await verifier(source, policy)
    except UntrustedRegistry as error:
        raise Rejected("untrusted_registry", error.what) from None
    except VerificationError as error:
        if isinstance(error.__context__, BrokenAnswer):
            # A proxy's login page, for example: it is the registry's answer that is wrong, not the image.
            raise error.__context__ from None
        raise Rejected("verification_failed", f"{error.where}{error.what}") from None
    except (TrustError, UsageError) as error:
        raise Rejected("no_trust", error.what) from None
    except (InvalidReference, LayoutError) as error:
        raise Rejected("invalid_image", error.what) from None


async def _keep(platform: Platform, lease: Lease, work: anyio.CancelScope) -> None:
    """Renew the lease as long as the work goes on; end the work when it is lost."""
    length = platform.settings.schedule.lease
    while True:
        await anyio.sleep(length.total_seconds() / 3)
        try:
            await platform.database.write(lambda on: queue.renew(on, lease, platform.clock() + length))
        except LeaseLost:
            work.cancel()
            return


def _delay(attempt: int, schedule: Schedule) -> timedelta:
    """How long to wait after that many attempts: doubled each time, and never for all at once."""
    most: timedelta = min(schedule.longest_retry, schedule.first_retry * 2 ** (attempt - 1))
    return timedelta(seconds=most.total_seconds() * random.uniform(0.5, 1.0))
