"""What a page of a list costs the database: the same wherever the page is and whatever is asked for, so that
nothing slows down as rows pile up. Counted is what the database does, not how long it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy import Connection, event

from platform_server.state_folder import Platform
from tests.platform_server.api import Api
from tests.platform_server.history import fill
from tests.platform_server.questions import QUESTIONS

PUBLICATIONS = EVENTS = 20_000
# For 51 rows; whoever goes through an index of them all does many times as much.
INSTRUCTIONS = 20_000
BLOCKS = 100


@contextmanager
def work(platform: Platform) -> Iterator[list[int]]:
    """What each query in the block takes: SQLite's instructions, or blocks that PostgreSQL reads."""
    found: list[int] = []

    def instructions(on: Any, statement: str, values: Any) -> int:
        ticks = 0

        def tick() -> None:
            nonlocal ticks
            ticks += 1

        on.driver_connection.set_progress_handler(tick, 100)
        with closing(on.cursor()) as cursor:
            cursor.execute(statement, values)
            cursor.fetchall()
        on.driver_connection.set_progress_handler(None, 0)
        return ticks * 100

    def blocks(on: Any, statement: str, values: Any) -> int:
        with closing(on.cursor()) as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", values)
            plan = cursor.fetchone()[0][0]["Plan"]
        return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    count = instructions if platform.database.is_sqlite else blocks

    def executed(on: Connection, cursor: object, statement: str, values: Any, *_: object) -> None:
        if statement.startswith("SELECT"):
            found.append(count(on.connection, statement, values))

    event.listen(platform.database.engine, "before_cursor_execute", executed)
    yield found
    event.remove(platform.database.engine, "before_cursor_execute", executed)


def test_a_page_costs_the_same_wherever_it_is(api: Api, platform: Platform) -> None:
    history = fill(platform, PUBLICATIONS, EVENTS)
    most = INSTRUCTIONS if platform.database.is_sqlite else BLOCKS
    slow = {}
    for name, asks in QUESTIONS.items():
        question = asks(history)
        with work(platform) as done:
            if question.body is None:
                data = api.get(question.path, **question.query)
            else:
                data = api.post(question.path, question.body)
        assert len(data[question.name]) == question.rows, name
        assert done, name
        if max(done) > most:
            slow[name] = max(done)
    assert slow == {}
