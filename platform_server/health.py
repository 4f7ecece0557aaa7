"""Whether this process can do its work: what a proxy, a service manager and an operator ask.

1. stopping: it was told to end, and should get nothing new.
2. database: it answers, has a schema that this program works with, and takes what is written.
3. disk: there is room for an upload beside what is kept for the database.
4. tasks: workers and sweeps run.

The answer is a second old at most, whoever asks how often; a check that takes too long has failed.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping

import anyio
from anyio import to_thread

from platform_server.beside import Beside
from platform_server.migrations.run import current, is_compatible, newest
from platform_server.state_folder import Platform
from platform_server.upload_files import RESERVE

log = logging.getLogger(__name__)

OK = "ok"
CHECKS = ("stopping", "database", "disk", "tasks")
# An answer counts so long, and a check may take so long, in seconds.
_FRESH = 1.0
_PATIENCE = 3.0


class Health:
    """The checks of one process. Methods may be called from any thread."""

    def __init__(
        self, platform: Platform, beside: Beside, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._platform = platform
        self._beside = beside
        self._clock = clock
        self._stopping = False
        self._turn = threading.Lock()
        self._asking = anyio.Lock()
        self._waiting = False
        self._found: tuple[float, Mapping[str, str]] | None = None

    def stop(self) -> None:
        """Not ready from here on."""
        self._stopping = True

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to end."""
        return self._stopping

    async def check(self) -> Mapping[str, str]:
        """Each check by name: `ok`, or what is wrong."""
        if (known := self._known()) is not None:
            return known
        try:
            with anyio.fail_after(_PATIENCE):
                async with self._asking:
                    # One that was given up may wait still: no other joins it, however many ask.
                    if not self._waiting:
                        self._waiting = True
                        return await to_thread.run_sync(self._waited_for, abandon_on_cancel=True)
        except TimeoutError:
            pass
        return self._with({"database": f"no answer within {_PATIENCE:g} s", "disk": "not known"})

    def check_now(self) -> Mapping[str, str]:
        """`check`, in this thread; as patient as the database."""
        with self._turn:
            if (known := self._known()) is None:
                known = self._with({"database": self._database(), "disk": self._disk()})
                self._found = (self._clock(), known)
            return known

    def _waited_for(self) -> Mapping[str, str]:
        try:
            return self.check_now()
        finally:
            self._waiting = False

    def _known(self) -> Mapping[str, str] | None:
        if self._found is None or self._clock() - self._found[0] >= _FRESH:
            return None
        return self._with(self._found[1])

    def _with(self, found: Mapping[str, str]) -> Mapping[str, str]:
        """What was found, with what is known without asking anybody."""
        now = {
            "stopping": "told to stop" if self._stopping else OK,
            "tasks": self._beside.trouble() or OK,
        }
        return {name: {**found, **now}[name] for name in CHECKS}

    def _database(self) -> str:  # 2
        try:
            found = current(self._platform.database)
        except Exception as error:
            # Its text may name hosts and users, and anybody may ask.
            log.warning("the database does not answer: %s", error)
            return self._platform.database.trouble() or "no answer; the log says why"
        if found is None or not is_compatible(newest(), found):
            return f"expected schema {newest()}, found {found or 'none'}"
        why = self._platform.database.trouble()
        return OK if why is None else f"can't be written: {why}"

    def _disk(self) -> str:  # 3
        try:
            free = shutil.disk_usage(self._platform.uploads).free
        except OSError as error:
            return f"uploads: {error.strerror}"
        return OK if free > RESERVE else f"expected {RESERVE} bytes free for the database, found {free}"
