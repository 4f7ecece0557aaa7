"""kill -9 of a backup and of a restore at any moment: nothing is there, or all of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from platform_server.errors import StateError
from tests.platform_server.backups import Digests, Target, digests, put, rows_of, take
from tests.platform_server.clock import Clock
from tests.platform_server.invariants import broken
from tests.platform_server.killing import SEED, Kill
from tests.platform_server.lived import live, upload
from tests.platform_server.made import Made
from tests.platform_server.verifying import Trial
from tests.postgres_server import PostgresServer

pytestmark = [pytest.mark.timeout(600), pytest.mark.one_database]


@pytest.fixture
def lived(trial: Trial, clock: Clock) -> Trial:
    """A platform with something of everything, and two uploads."""
    live(trial, clock)
    upload(trial, b"an image" * 1000)
    upload(trial, b"another image" * 1000)
    return trial


def _is_whole(target: Target, expected: Digests) -> None:
    assert rows_of(target) == expected
    platform = target.open()
    with closing(platform.database):
        assert broken(platform) == []
    assert len(list((target.folder / "uploads").glob("*.tar"))) == 2


def _targets(tmp_path: Path) -> Iterator[Target]:
    number = 0
    while True:
        number += 1
        yield Target(tmp_path / f"restored-{number}")


def test_a_restore_killed_at_many_moments(lived: Trial, kill: Kill, tmp_path: Path) -> None:
    path = tmp_path / "platform.backup"
    take(lived.platform, path)
    expected = digests(lived.platform)
    targets = _targets(tmp_path)
    whole = next(targets)
    order = {"file": str(path)}
    moments = kill("restore", whole, **order)["moments"]
    _is_whole(whole, expected)
    assert moments > 100
    chosen = {*random.Random(SEED).sample(range(1, moments + 1), 30), *range(moments - 5, moments + 1)}
    for moment in sorted(chosen):
        target = next(targets)
        assert kill("restore", target, moment, **order)["killed"]
        # the last moment is before the commit
        with pytest.raises(StateError):
            target.open()
        put(path, target)
        _is_whole(target, expected)


@pytest.mark.postgres
def test_a_restore_into_postgresql_killed_at_many_moments(
    lived: Trial, kill: Kill, postgres: PostgresServer, tmp_path: Path
) -> None:
    path = tmp_path / "platform.backup"
    take(lived.platform, path)
    expected = digests(lived.platform)
    moments = _kill_elsewhere(kill, postgres, path, tmp_path / "whole", 0, expected)
    chosen = [*random.Random(SEED).sample(range(1, moments + 1), 15), *range(moments - 5, moments + 1)]
    for number, moment in enumerate(chosen):
        _kill_elsewhere(kill, postgres, path, tmp_path / f"restored-{number}", moment, expected)


def _kill_elsewhere(
    kill: Kill, server: PostgresServer, path: Path, folder: Path, moment: int, expected: Digests
) -> int:
    name = server.create()
    target = Target(folder, server.url(name))
    answer = kill("restore", target, moment, file=str(path))
    if moment:
        assert answer["killed"]
        with pytest.raises(StateError):
            target.open()
        put(path, target)
    _is_whole(target, expected)
    server.drop(name)
    return int(answer.get("moments", 0))


def test_a_backup_killed_at_many_moments_leaves_no_half_file(
    lived: Trial, made: Made, kill: Kill, tmp_path: Path
) -> None:
    path, order = tmp_path / "platform.backup", {"file": str(tmp_path / "platform.backup")}
    # the first one makes the mark of when it was, which all others find
    kill("back_up", made, **order)
    path.unlink()
    moments = kill("back_up", made, **order)["moments"]
    content = path.read_bytes()
    ends = set()
    for moment in range(1, moments + 1):
        path.unlink(missing_ok=True)
        assert kill("back_up", made, moment, **order)["killed"]
        ends.add(path.exists())
        if not path.exists():
            kill("back_up", made, **order)
        put(path, Target(tmp_path / "nowhere"), dry_run=True)
    assert ends == {False, True}
    assert abs(path.stat().st_size - len(content)) < 512
