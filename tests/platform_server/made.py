"""A platform that was set up: its folder, its administrator's token, and where its database is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from platform_server.settings import Settings
from platform_server.state_folder import Platform, now, open_platform
from tests.postgres_server import PostgresServer

# A database on a server takes longer to copy: of all moments a test is killed there at every third.
SPARSE = 3


@dataclass(frozen=True)
class OnPostgres:
    """A database on the tests' server."""

    server: PostgresServer
    name: str

    @property
    def url(self) -> str:
        """As the platform is told."""
        return self.server.url(self.name)


@dataclass(frozen=True)
class Made:
    """A platform's folder, its administrator's token, and its database where that is not in the folder."""

    folder: Path
    admin_token: str
    elsewhere: OnPostgres | None = field(default=None, repr=False)

    @property
    def database(self) -> str | None:
        """The database's URL; None is the folder's own."""
        return None if self.elsewhere is None else self.elsewhere.url

    @property
    def argv(self) -> tuple[str, ...]:
        """What every action of `disk-image platform` is told."""
        elsewhere = () if self.database is None else ("--database", self.database)
        return ("--state", str(self.folder), *elsewhere)

    def open(self, settings: Settings | None = None, clock: Callable[[], datetime] = now) -> Platform:
        """The platform, opened once more."""
        return open_platform(self.folder, settings, clock, database=self.database)

    def copied(self, folder: Path) -> Made:
        """Once more in another folder, in place of what is there. Nobody may have this one open."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        if self.elsewhere is None:
            return Made(folder, self.admin_token)
        name = f"{self.elsewhere.name}_{folder.name}"
        self.elsewhere.server.copy(self.elsewhere.name, name)
        return Made(folder, self.admin_token, OnPostgres(self.elsewhere.server, name))

    @property
    def moments(self) -> int:
        """At how many moments, chosen at random, a test is killed."""
        return 48 if self.elsewhere is None else 48 // SPARSE

    @property
    def step(self) -> int:
        """A test that goes through all moments is killed at every `step`th."""
        return 1 if self.elsewhere is None else SPARSE

    def content(self) -> bytes:
        """Every byte that the database keeps."""
        if self.elsewhere is None:
            return b"".join(path.read_bytes() for path in self.folder.glob("platform.db*"))
        return self.elsewhere.server.content(self.elsewhere.name)
