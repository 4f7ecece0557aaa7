"""A platform in a folder of its own, with a clock that tests set."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from platform_server.settings import Settings
from platform_server.state_folder import Platform, initialise, open_platform

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class Clock:
    """Time as a test says."""

    time: datetime = START

    def __call__(self) -> datetime:
        return self.time

    def pass_by(self, **time: float) -> datetime:
        self.time += timedelta(**time)
        return self.time


@dataclass(frozen=True)
class Made:
    """A platform's folder and its administrator's token."""

    folder: Path
    admin_token: str


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A new platform, which no test changes."""
    folder = tmp_path_factory.mktemp("platform") / "state"
    return Made(folder, initialise(folder, START))


@pytest.fixture
def made(made_once: Made, tmp_path: Path) -> Made:
    """A new platform for one test."""
    folder = tmp_path / "state"
    shutil.copytree(made_once.folder, folder)
    return Made(folder, made_once.admin_token)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings() -> Settings:
    """What a test module may replace."""
    return Settings()


@pytest.fixture
def platform(made: Made, clock: Clock, settings: Settings) -> Iterator[Platform]:
    """The platform, open."""
    opened = open_platform(made.folder, settings, clock)
    yield opened
    opened.database.close()
