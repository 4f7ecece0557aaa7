"""Counting events that are written, for the metrics: when their transaction is committed, and not when it,
or the savepoint that they were written in, is undone.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, Engine, event

from platform_server.metrics import EVENTS

_WRITTEN = "events written"
# Where a savepoint began: they end in the opposite order.
_SAVEPOINT: Final = None


def written(connection: Connection, kind: str) -> None:
    """An event of that kind is written in the connection's transaction."""
    _of(connection).append(kind)


@event.listens_for(Engine, "savepoint")
def _begun(connection: Connection, name: None) -> None:
    _of(connection).append(_SAVEPOINT)


@event.listens_for(Engine, "release_savepoint")
def _kept(connection: Connection, name: str, context: None) -> None:
    found = _of(connection)
    last = _last_savepoint(found)
    del found[last : last + 1]


@event.listens_for(Engine, "rollback_savepoint")
def _undone(connection: Connection, name: str, context: None) -> None:
    found = _of(connection)
    del found[_last_savepoint(found) :]


@event.listens_for(Engine, "rollback")
def _all_undone(connection: Connection) -> None:
    _of(connection).clear()


@event.listens_for(Engine, "commit")
def _committed(connection: Connection) -> None:
    found = _of(connection)
    for each in found:
        EVENTS.labels(each).inc()
    found.clear()


def _of(connection: Connection) -> list[str | None]:
    """What was written in the connection's transaction; of a connection that was lost, nothing."""
    if connection.closed or connection.invalidated:
        return []
    found: list[str | None] = connection.info.setdefault(_WRITTEN, [])
    return found


def _last_savepoint(found: list[str | None]) -> int:
    """Its index; the length when there is none."""
    return len(found) - 1 - found[::-1].index(_SAVEPOINT) if _SAVEPOINT in found else len(found)
