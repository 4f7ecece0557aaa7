"""Group commit: one thread runs the units of work that wait, many in one transaction, so that one sync to
disk serves them all, and who waits on an event loop costs no thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeAlias, TypeVar, cast

import anyio
from sqlalchemy import Connection

from platform_server.errors import Unavailable

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Units of work in one transaction.
GROUP = 64


class Unit(Generic[_Item, _Result]):
    """What one caller wants done, and then what came of it.

    Units of one transaction with the same `work` are done by one call of it, which gets their items and
    returns as many results.
    """

    def __init__(
        self, work: Callable[[Connection, Sequence[_Item]], Sequence[_Result]], item: _Item
    ) -> None:
        self.work = work
        self.item = item
        self.failures = 0
        self.error: BaseException | None = None
        self.value: _Result | None = None
        self.ended: threading.Event | asyncio.Future[None] | None = None

    def result(self) -> _Result:
        """What the work returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return cast(_Result, self.value)


AnyUnit: TypeAlias = Unit[Any, Any]


class GroupCommit:
    """A queue of units and the thread that works on it. `run` does a group, and returns those of it that are
    to be done again, in the next group.
    """

    def __init__(self, run: Callable[[Sequence[AnyUnit]], Sequence[AnyUnit]]) -> None:
        self._run = run
        self._waiting: queue.SimpleQueue[AnyUnit | None] = queue.SimpleQueue()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False

    def do_now(self, unit: Unit[Any, _Result]) -> _Result:
        """The unit's result; this thread waits for it."""
        ended = unit.ended = threading.Event()
        self._put(unit)
        ended.wait()
        return unit.result()

    async def do(self, unit: Unit[Any, _Result]) -> _Result:
        """The unit's result. Whoever is cancelled waits for it all the same: it can't be taken back."""
        ended = unit.ended = asyncio.get_running_loop().create_future()
        self._put(unit)
        with anyio.CancelScope(shield=True):
            await ended
        return unit.result()

    def close(self) -> None:
        """Do what waits, and end the thread."""
        with self._turn:
            if self._thread is not None:
                self._waiting.put(None)
                self._thread.join()
                self._thread = None

    def _put(self, unit: AnyUnit) -> None:
        with self._turn:
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._work, name="group-commit", daemon=True)
                self._thread.start()
            self._waiting.put(unit)

    def _work(self) -> None:
        again: Sequence[AnyUnit] = ()
        while again or not self._closing:
            group = [*again, *self._taken(GROUP - len(again), wait=not again)]
            try:
                again = self._run(group) if group else ()
            except BaseException as error:
                again = ()
                if isinstance(error, Unavailable):
                    # Who came meanwhile does not wait as long again, group after group.
                    group += self._taken(self._waiting.qsize(), wait=False)
                for each in group:
                    each.error = error
            _tell([each for each in group if each not in again])

    def _taken(self, most: int, *, wait: bool) -> list[AnyUnit]:
        taken: list[AnyUnit] = []
        with suppress(queue.Empty):
            while len(taken) < most and not self._closing:
                unit = self._waiting.get(block=wait and not taken)
                if unit is None:
                    self._closing = True
                else:
                    taken.append(unit)
        return taken


def _tell(units: Sequence[AnyUnit]) -> None:
    """Wake those who wait, each event loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for unit in units:
        if isinstance(unit.ended, threading.Event):
            unit.ended.set()
        elif unit.ended is not None:
            loops.setdefault(unit.ended.get_loop(), []).append(unit.ended)
    for loop, futures in loops.items():
        with suppress(RuntimeError):  # the loop was closed: nobody waits there
            loop.call_soon_threadsafe(_wake, futures)


def _wake(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
