"""Several things at once, no more than a number of them, and one plain error when any of them fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

_Item = TypeVar("_Item")


async def side_by_side(most: int, items: Iterable[_Item], work: Callable[[_Item], Awaitable[None]]) -> None:
    """Run `work` on each item, at most `most` at once, started in order. The first failure ends the others
    and is raised alone.
    """
    places = anyio.Semaphore(most)
    failures: list[Exception] = []

    async def run(item: _Item) -> None:
        try:
            await work(item)
        except Exception as error:
            failures.append(error)
            group.cancel_scope.cancel()
        finally:
            places.release()

    async with anyio.create_task_group() as group:
        for item in items:
            await places.acquire()
            group.start_soon(run, item)
    if failures:
        raise failures[0]
