"""Sweeps: what retention asks for, done once a day and whenever somebody wants it; and the watch for what is
stuck.

A sweep may be cut off anywhere, and may run beside another one: the next one ends where this would have.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import anyio
from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import node_platforms, purge, retention, secret_pickups, stuck
from platform_server.errors import Unavailable
from platform_server.metrics import SWEEP_FAILURES, sweeping
from platform_server.permissions import Caller
from platform_server.purger import purge_due
from platform_server.state_folder import Platform
from platform_server.tables import NodePlatform

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did for one platform, or would do: how many publications each. `blocked` are those that
    should be purged and could not be.
    """

    retired: int
    stuck_retired: int
    purged: int
    blocked: int


async def sweep(platform: Platform, platform_id: UUID, grace: timedelta, *, dry_run: bool = False) -> Swept:
    """Retire and purge what one platform need not keep."""
    database, at = platform.database, platform.clock()
    if dry_run:
        return await database.read(lambda on: _preview(on, platform_id, at, grace))
    retired = await database.write(
        lambda on: retention.retire_surplus(on, node_platforms.hold(on, platform_id), at)
    )
    stuck_retired = 0
    while True:
        count = await database.write(
            lambda on: retention.retire_stale(on, node_platforms.hold(on, platform_id), at - grace, at)
        )
        stuck_retired += count
        if count < retention.BATCH:
            break
    node_platform = await database.read(lambda on: on.get_one(NodePlatform, platform_id))
    purged, blocked = await purge_due(platform, node_platform, at - grace)
    return Swept(retired, stuck_retired, purged, blocked)


async def sweep_account(
    platform: Platform, caller: Caller, platform_id: UUID | None, grace: timedelta, *, dry_run: bool
) -> Mapping[UUID, Swept]:
    """Sweep one of the account's platforms, or all. Raises Missing."""

    def ids(session: Session) -> Sequence[UUID]:
        if platform_id is not None:
            return [node_platforms.get(session, caller, platform_id).id]
        return session.scalars(
            select(NodePlatform.id).where(NodePlatform.account_id == caller.account_id)
        ).all()

    return {
        each: await sweep(platform, each, grace, dry_run=dry_run)
        for each in await platform.database.read(ids)
    }


async def sweep_everything(platform: Platform, *, dry_run: bool = False) -> Mapping[UUID, Swept | None]:
    """Sweep every platform of every account. One that fails stops no other: it is logged, and None.
    Raises Unavailable.
    """
    grace = platform.settings.schedule.grace
    swept: dict[UUID, Swept | None] = {}
    for each in await platform.database.read(lambda on: on.scalars(select(NodePlatform.id)).all()):
        try:
            swept[each] = await sweep(platform, each, grace, dry_run=dry_run)
        except Unavailable:
            raise
        except Exception:
            SWEEP_FAILURES.labels("retention").inc()
            log.exception("the sweep of node platform %s was cut off", each)
            swept[each] = None
    return swept


async def tell_of_stuck(platform: Platform) -> int:
    """Tell of every publication that is newly stuck; of how many."""
    database, schedule, at = platform.database, platform.settings.schedule, platform.clock()
    ids = await database.read(lambda on: stuck.newly(on, schedule, at))
    told = 0
    for first in range(0, len(ids), stuck.BATCH):
        some = ids[first : first + stuck.BATCH]
        told += await database.write(partial(stuck.report, schedule=schedule, ids=some, at=at))
    return told


async def run(platform: Platform) -> None:
    """Sweep now and then daily, and look for what is stuck more often, until cancelled."""
    schedule = platform.settings.schedule
    next_sweep = anyio.current_time()
    while True:
        with sweeping("stuck"):
            await tell_of_stuck(platform)
        with sweeping("secrets"):
            await platform.database.write(lambda on: secret_pickups.purge(on, platform.clock()))
        if anyio.current_time() >= next_sweep:
            next_sweep = anyio.current_time() + schedule.sweep.total_seconds()
            with sweeping("retention"):
                await sweep_everything(platform)
        await anyio.sleep(min(schedule.stuck / 4, schedule.sweep).total_seconds())


def _preview(session: Session, platform_id: UUID, at: datetime, grace: timedelta) -> Swept:
    platform = session.get_one(NodePlatform, platform_id)
    stale = retention.stale(session, platform, at - grace)
    due = purge.due(session, platform, at - grace)
    return Swept(len(retention.surplus(session, platform)), len(stale), len(due), 0)
