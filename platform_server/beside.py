"""What runs beside the answers: verification workers, sweeps and the manager, on an event loop of their own,
so that none of them delays an answer.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import anyio
from anyio.from_thread import start_blocking_portal

from platform_server import sweeps, upload_files, worker
from platform_server.manager import tick
from platform_server.state_folder import Platform
from platform_server.verifier import Verifier

_BEAT = 1.0
# A loop that does not come round for so long, in seconds, does nothing any more.
_SILENCE = 30.0


class Beside:
    """The tasks of one platform."""

    def __init__(self, platform: Platform, verifier: Verifier) -> None:
        self._tasks: dict[str, Callable[[], Awaitable[None]]] = {
            "uploads": lambda: upload_files.sweep_always(platform),
            "sweeps": lambda: sweeps.run(platform),
            "manager": lambda: tick.run(platform),
            "beat": self._beat,
        }
        if platform.settings.workers:
            self._tasks["workers"] = lambda: worker.run(platform, verifier)
        self._running: dict[str, Future[None]] = {}
        self._beaten = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run them while the block lasts, or until they are stopped."""
        with start_blocking_portal(name="platform") as portal:
            self._running = {name: portal.start_task_soon(task) for name, task in self._tasks.items()}
            try:
                yield
            finally:
                self.stop()

    def stop(self) -> None:
        """End them at their next step: jobs go back into the queue, sweeps are taken up by the next one."""
        for each in self._running.values():
            each.cancel()

    def trouble(self) -> str | None:
        """Which of them does nothing any more; None when all is well."""
        ended = [name for name, each in self._running.items() if each.done()]
        if ended or not self._running:
            return f"not running: {', '.join(ended) or 'all'}"
        silence = time.monotonic() - self._beaten
        return f"nothing done for {silence:.0f} s" if silence > _SILENCE else None

    async def _beat(self) -> None:
        while True:
            self._beaten = time.monotonic()
            await anyio.sleep(_BEAT)
