"""What statements cost the database, counted: never how long they take, which a busy machine decides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, event

from platform_server.database import Database

# SQLite's instructions between two looks.
_GRAIN = 10


@dataclass
class Statement:
    """A statement that was carried out. `cost` is what it took: on SQLite instructions of its machine, on
    PostgreSQL rows and blocks that were read, those that were passed over among them.
    """

    text: str
    cost: int = 0


@contextmanager
def work(database: Database) -> Iterator[list[Statement]]:
    """Every statement in the block, whoever carries it out, in the order in which they began."""
    found: list[Statement] = []
    executed = _counts_instructions(found) if database.is_sqlite else _counts_rows(found)
    event.listen(database.engine, "before_cursor_execute", executed)
    yield found
    event.remove(database.engine, "before_cursor_execute", executed)


def _counts_instructions(found: list[Statement]) -> Any:
    def executed(on: Connection, cursor: object, statement: str, *_: object) -> None:
        done = Statement(statement)
        found.append(done)

        def tick() -> None:
            done.cost += _GRAIN

        # it counts until the connection's next statement: rows are computed as they are fetched
        on.connection.driver_connection.set_progress_handler(tick, _GRAIN)  # type: ignore[union-attr]

    return executed


def _counts_rows(found: list[Statement]) -> Any:
    def executed(on: Connection, cursor: object, statement: str, values: Any, _: object, many: bool) -> None:
        done = Statement(statement)
        found.append(done)
        if not statement.startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            return
        # carried out once more, and undone
        with closing(on.connection.cursor()) as asking:
            asking.execute("SAVEPOINT work")
            explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
            asking.execute(explain, values[0] if many else values)
            answer = asking.fetchone()
            assert answer is not None
            said = json.loads(answer[0]) if isinstance(answer[0], str) else answer[0]
            asking.execute("ROLLBACK TO SAVEPOINT work")
            asking.execute("RELEASE SAVEPOINT work")
        plan = said[0]["Plan"]
        done.cost = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] + sum(_rows(plan))

    return executed


def _rows(plan: dict[str, Any]) -> Iterator[int]:
    """How many rows each step of a plan had before it, and before it passed some over."""
    passed = ("Rows Removed by Filter", "Rows Removed by Index Recheck", "Rows Removed by Join Filter")
    rows = plan["Actual Rows"] + sum(plan.get(each, 0) for each in passed)
    yield int(rows * plan["Actual Loops"])
    for each in plan.get("Plans", ()):
        yield from _rows(each)
