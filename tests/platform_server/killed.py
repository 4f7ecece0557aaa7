"""Does one thing to a platform's state in a child that is killed at a chosen moment.

Run as a program: each line of standard input is an order, each line of output says how often it got there.
A moment is before and after each statement, before each commit, and before and after each request to a
registry; for what is done with files, before and after each call that changes a folder; moment 0 never
comes. The child is forked from a process that has loaded everything already.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
from sqlalchemy import event
from sqlalchemy.engine import Engine

from platform_server import registries, sweeps, worker
from platform_server.backup import make
from platform_server.backup import restore as restoring
from platform_server.intake import Intake, Received
from platform_server.settings import Registries, Settings
from platform_server.signatures import SignatureHeaders
from platform_server.state_folder import Platform, migrate_folder, open_platform
from platform_server.verifier import verifier_of

Order = dict[str, Any]


def verify(order: Order) -> None:
    """Verify everything that is due."""
    platform = _open(order)
    verifier = verifier_of(Path(order["trust"]))

    async def work() -> None:
        while await worker.work(platform, verifier):
            pass

    anyio.run(work)
    platform.database.close()


def deliver(order: Order) -> None:
    """Take one webhook's delivery."""
    platform = _open(order)
    received = Received(
        order["webhook_id"], order["body"].encode(), SignatureHeaders(**order["headers"]), "127.0.0.1"
    )
    anyio.run(Intake(platform).take, received)
    platform.database.close()


def sweep(order: Order) -> None:
    """Retire and purge what need not be kept."""
    platform = _open(order)
    anyio.run(sweeps.sweep_everything, platform)
    platform.database.close()


def migrate(order: Order) -> None:
    """Bring the schema to a revision."""
    migrate_folder(Path(order["folder"]), order["revision"], order["database"])


def back_up(order: Order) -> None:
    """Write a backup."""
    platform = _open(order)
    make.backup(platform, Path(order["file"]), with_key=True, told=lambda line: None)
    platform.database.close()


def restore(order: Order) -> None:
    """Make a platform of a backup."""
    restoring.restore(
        Path(order["file"]),
        Path(order["folder"]),
        order["database"],
        key=None,
        dry_run=False,
        told=lambda line: None,
    )


ACTIONS: dict[str, Callable[[Order], None]] = {
    "verify": verify,
    "deliver": deliver,
    "sweep": sweep,
    "migrate": migrate,
    "back_up": back_up,
    "restore": restore,
}


_ON_FILES = frozenset({"back_up", "restore"})


def _open(order: Order) -> Platform:
    at = datetime.now(UTC) + timedelta(minutes=order.get("ahead", 0))
    settings = Settings(registries=Registries(plain_http=True))
    return open_platform(Path(order["folder"]), settings, lambda: at, database=order["database"])


class Moments:
    """Counts, and kills the process at one of them."""

    def __init__(self, killed_at: int) -> None:
        self.count = 0
        self._killed_at = killed_at
        for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(Engine, name, self.one)
        real = registries._Guard.handle_async_request

        async def asking(guard: Any, request: httpx.Request) -> httpx.Response:
            self.one()
            answer = await real(guard, request)
            self.one()
            return answer

        registries._Guard.handle_async_request = asking  # type: ignore[method-assign,assignment]

    def count_files(self) -> None:
        """Before and after each call that changes a folder, too."""
        for name in ("fsync", "rename", "mkdir", "unlink", "open"):
            setattr(os, name, self._around(getattr(os, name)))

    def _around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*arguments: Any, **options: Any) -> Any:
            self.one()
            answer = call(*arguments, **options)
            self.one()
            return answer

        return calling

    def one(self, *_: object) -> None:
        self.count += 1
        if self.count == self._killed_at:
            os.kill(os.getpid(), signal.SIGKILL)


def run(order: Order) -> Order:
    """Carry out an order in a child; how many moments there were, None when it was killed."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reading)
        moments = Moments(order["killed_at"])
        if order["action"] in _ON_FILES:
            moments.count_files()
        try:
            ACTIONS[order["action"]](order)
            os.write(writing, str(moments.count).encode())
        except BaseException as error:
            os.write(writing, f"failed: {error!r}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return {"killed": True}
    return {"killed": False, "moments": int(said)} if said.isdigit() else {"killed": False, "error": said}


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()
