"""How the database carries out what it is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event

# What PostgreSQL chooses when its tables are so large that it has to.
_AS_IF_LARGE = ("SET LOCAL enable_seqscan = off", "SET LOCAL enable_sort = off")


@dataclass(frozen=True)
class Step:
    """A part of a plan, in the database's words; `rows` is how many it read, where that is known."""

    what: str
    rows: int = 0

    @property
    def is_scan(self) -> bool:
        """Whether it goes through a whole table."""
        if self.what.startswith("Seq Scan"):
            return True
        # an anonymous subquery's rows were found by steps of their own
        return bool(re.match("SCAN (?!anon_)", self.what)) and not re.search("USING|CONSTANT", self.what)

    @property
    def is_sort(self) -> bool:
        """Whether it sorts rows by hand."""
        return "TEMP B-TREE" in self.what or self.what == "Sort"


@contextmanager
def plans(on: Engine | Connection) -> Iterator[dict[str, list[Step]]]:
    """Statement → how it is carried out, for all that happens in the block."""
    seen: dict[str, list[Step]] = {}

    def executed(on: Connection, cursor: object, statement: str, values: Any, _: object, many: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")) and statement not in seen:
            seen[statement] = _explained(on, statement, values[0] if many else values)

    event.listen(on, "before_cursor_execute", executed)
    yield seen
    event.remove(on, "before_cursor_execute", executed)


def _explained(on: Connection, statement: str, values: Any) -> list[Step]:
    with closing(on.connection.cursor()) as asking:
        if on.dialect.name == "sqlite":
            asking.execute(f"EXPLAIN QUERY PLAN {statement}", values)
            return [Step(row[3]) for row in asking.fetchall()]
        for setting in _AS_IF_LARGE:
            asking.execute(setting)
        # only what changes nothing is carried out to count its rows
        analyse = statement.startswith("SELECT") and "FOR UPDATE" not in statement
        asking.execute(f"EXPLAIN (FORMAT JSON, ANALYZE {analyse}) {statement}", values)
        found = asking.fetchone()
        assert found is not None
        said = json.loads(found[0]) if isinstance(found[0], str) else found[0]
        for setting in _AS_IF_LARGE:
            asking.execute(setting.replace("off", "on"))
    return list(_steps(said[0]["Plan"]))


def _steps(plan: dict[str, Any]) -> Iterator[Step]:
    where = f" on {plan['Relation Name']}" if "Relation Name" in plan else ""
    rows = plan.get("Actual Rows", 0) + plan.get("Rows Removed by Filter", 0)
    yield Step(f"{plan['Node Type']}{where}", int(rows * plan.get("Actual Loops", 1)))
    children: Sequence[dict[str, Any]] = plan.get("Plans", ())
    for each in children:
        yield from _steps(each)
