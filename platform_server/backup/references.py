"""Rows that refer to each other in a circle, put in table by table.

SQLite does not look at references while it migrates. PostgreSQL always does: its constraints are dropped and
added again in the same transaction, which checks all rows at once, as pg_restore does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text

_FOUND = text(
    "SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE contype = 'f' AND connamespace = current_schema()::regnamespace ORDER BY 1, 2"
)


@contextmanager
def without_references(connection: Connection) -> Iterator[None]:
    """Put in rows in any order; at the end every reference leads to a row, or IntegrityError is raised."""
    if connection.dialect.name != "postgresql":
        yield
        return
    found = [tuple(row) for row in connection.execute(_FOUND)]
    for table, name, _ in found:
        connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    yield
    for table, name, definition in found:
        connection.exec_driver_sql(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
