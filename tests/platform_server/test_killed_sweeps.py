"""kill -9 at random moments of retention, which retires and then purges from a registry: what is kept stays
whole, and the next sweep ends as the first one would have.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server.states import Status
from platform_server.tables import Event, NodePlatform, Publication, Purge
from tests.platform_server.clock import Clock
from tests.platform_server.fleet import SWEPT, Fleet
from tests.platform_server.images import REPOSITORY
from tests.platform_server.killing import SEED, Kill
from tests.platform_server.made import Made
from tests.platform_server.verifying import Trial

pytestmark = pytest.mark.timeout(600)

WEEK = 8 * 24 * 60
FIRST, SECOND, DEFAULT = range(3)
Row = dict[str, Any]


def test_retention_killed_at_random_moments(
    trial: Trial, made: Made, clock: Clock, kill: Kill, tmp_path: Path
) -> None:
    """Of three images the last one is kept: the two others are retired now, and purged a week later."""
    fleet = Fleet(trial, clock)
    trial.platform.database.close()
    pushed = deepcopy(fleet.repo)
    retired = made.copied(tmp_path / "retired")
    retiring = kill("sweep", retired)["moments"]
    whole = retired.copied(tmp_path / "whole")
    purging = kill("sweep", whole, ahead=WEEK)["moments"]
    _check_end(fleet, _found(whole))
    before = _found(made).rows[DEFAULT]
    every = [(made, 0, at) for at in range(1, retiring + 1)]
    every += [(retired, WEEK, at) for at in range(1, purging + 1)]
    for start, ahead, moment in random.Random(SEED).sample(every, made.moments):
        what = f"killed at moment {moment} of {'purging' if ahead else 'retiring'}"
        fleet.trial.images.server.repos[REPOSITORY] = deepcopy(pushed)
        state = start.copied(tmp_path / "killed")
        assert kill("sweep", state, moment, ahead=ahead)["killed"]
        found = _found(state)
        assert found.rows[DEFAULT] == before, what
        assert fleet.is_whole(DEFAULT), what
        for number in (FIRST, SECOND):
            _check_halfway(fleet, found, number)
        if start is made:
            kill("sweep", state)
        kill("sweep", state, ahead=WEEK)
        _check_end(fleet, _found(state))


@dataclass(frozen=True)
class _Found:
    """What a state holds: publications, which purges have begun, how often retention told of which
    publication what, and the default.
    """

    rows: list[Row]
    begun: set[UUID]
    told: Counter[tuple[str, str]]
    default: UUID | None


def _found(state: Made) -> _Found:
    platform = state.open()

    def read(on: Session) -> _Found:
        table = Publication.__table__
        payloads = on.scalars(select(Event.payload).where(Event.kind == SWEPT)).all()
        return _Found(
            [row._asdict() for row in on.execute(select(table).order_by(table.c.id))],
            set(on.scalars(select(Purge.id))),
            Counter((each["publication_id"], each["action"]) for each in payloads),
            on.scalar(select(NodePlatform.default_publication_id)),
        )

    with closing(platform.database):
        return platform.database.read_now(read)


def _check_halfway(fleet: Fleet, found: _Found, number: int) -> None:
    """What the row says holds in the registry: only one whose purge has begun may be incomplete."""
    row = found.rows[number]
    if row["status"] is Status.PURGED:
        assert fleet.is_gone(number)
    elif not fleet.is_whole(number):
        assert row["status"] is Status.RETIRED
        assert row["purge_started_at"] is not None
        assert row["id"] in found.begun
    assert found.told[str(row["id"]), "retired"] == (row["status"] is not Status.PUBLISHED)
    assert found.told[str(row["id"]), "purged"] == (row["status"] is Status.PURGED)


def _check_end(fleet: Fleet, found: _Found) -> None:
    """Two are purged, each told once; the default is as it was."""
    assert [row["status"] for row in found.rows] == [Status.PURGED, Status.PURGED, Status.PUBLISHED]
    assert fleet.is_gone(FIRST)
    assert fleet.is_gone(SECOND)
    assert fleet.is_whole(DEFAULT)
    purged = [str(found.rows[number]["id"]) for number in (FIRST, SECOND)]
    assert found.told == {(each, action): 1 for each in purged for action in ("retired", "purged")}
    assert found.default == found.rows[DEFAULT]["id"]
