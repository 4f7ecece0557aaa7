"""Arbitrary rows of every table go through a backup unchanged, into either database."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table

from platform_server.backup.format import Column, Kind, TableHead
from platform_server.backup.rows import Rows, heads_of
from platform_server.errors import BackupError
from platform_server.migrations.run import migrate
from platform_server.sealing import Sealer, make_key, read_key
from platform_server.state_folder import open_database, open_platform
from platform_server.tables import Base
from tests.platform_server.backups import Target, digests, put, rows_of, take
from tests.postgres_server import PostgresServer

TIMES = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.just(UTC))
# PostgreSQL keeps no character 0.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
Row = dict[str, Any]
NUMBERS = count()


def _values(column: sa.Column[Any]) -> st.SearchStrategy[Any]:
    kind = column.type
    if isinstance(kind, sa.Enum):
        return st.sampled_from(list(kind.enums)).map(kind.python_type)
    if isinstance(kind, sa.Uuid):
        return st.uuids()
    if isinstance(kind, sa.types.TypeDecorator):
        return TIMES
    if isinstance(kind, sa.JSON):
        return JSON.filter(lambda value: value is not None)
    if isinstance(kind, sa.LargeBinary):
        return st.binary(max_size=32)
    if isinstance(kind, sa.Boolean):
        return st.booleans()
    if isinstance(kind, sa.BigInteger):
        return st.integers(-(2**63), 2**63 - 1)
    if isinstance(kind, sa.Integer):
        return st.integers(-(2**31), 2**31 - 1)
    assert isinstance(kind, sa.String)
    return TEXT.map(lambda text: text[: kind.length])


def _unique(table: Table) -> list[list[sa.Column[Any]]]:
    """The columns of which no two rows have the same."""
    groups = [list(each.columns) for each in table.constraints if isinstance(each, sa.UniqueConstraint)]
    return groups + [list(each.columns) for each in table.indexes if each.unique]


def _is_unique(table: Table, column: sa.Column[Any]) -> bool:
    return any(column.name == each.name for group in _unique(table) for each in group)


def _has_room(table: Table) -> bool:
    """Whether every unique group has a column whose values don't run out."""
    return not any(
        all(each.foreign_keys or isinstance(each.type, sa.Enum) for each in group)
        for group in _unique(table)
    )


@st.composite
def databases(draw: st.DrawFn) -> dict[str, list[Row]]:
    """Rows of every table; a reference leads to a row of its table, whatever comes first."""
    tables = Base.metadata.tables
    ids = {
        name: draw(st.lists(st.uuids(), min_size=1, max_size=3 if _has_room(table) else 1, unique=True))
        for name, table in tables.items()
    }
    shared = {name for name, table in tables.items() if table.c.id.foreign_keys}
    for name in shared:
        target = next(iter(tables[name].c.id.foreign_keys)).column.table.name
        ids[name] = ids[target]
    return {name: [_row(draw, table, each, ids) for each in ids[name]] for name, table in tables.items()}


def _row(draw: st.DrawFn, table: Table, own: UUID, ids: dict[str, list[UUID]]) -> Row:
    row: Row = {"id": own}
    for column in table.columns:
        if column.name == "id":
            continue
        if column.nullable and draw(st.booleans()):
            row[column.name] = None
        elif column.foreign_keys:
            row[column.name] = draw(st.sampled_from(ids[next(iter(column.foreign_keys)).column.table.name]))
        elif _is_unique(table, column) and isinstance(column.type, sa.String) and not column.type.length:
            row[column.name] = f"{draw(TEXT)}{next(NUMBERS)}"
        elif _is_unique(table, column) and isinstance(column.type, sa.LargeBinary):
            row[column.name] = next(NUMBERS).to_bytes(32, "big")
        else:
            row[column.name] = draw(_values(column))
    return row


@given(rows=databases())
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
def test_on_sqlite(rows: dict[str, list[Row]], tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp = tmp_path_factory.mktemp("rows")
    _goes_through(rows, tmp, Target(tmp / "restored"))


@pytest.mark.postgres
@given(rows=databases())
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
def test_from_sqlite_to_postgresql_and_back(
    rows: dict[str, list[Row]], tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer
) -> None:
    tmp, name = tmp_path_factory.mktemp("rows"), postgres.create()
    elsewhere = Target(tmp / "elsewhere", postgres.url(name))
    _goes_through(rows, tmp, elsewhere)
    platform = elsewhere.open()
    with closing(platform.database):
        take(platform, tmp / "back.backup")
    put(tmp / "back.backup", Target(tmp / "back"))
    assert rows_of(Target(tmp / "back")) == rows_of(elsewhere)
    postgres.drop(name)


def _goes_through(rows: dict[str, list[Row]], tmp: Path, target: Target) -> None:
    (tmp / "state" / "uploads").mkdir(parents=True)
    make_key(tmp / "state" / "secrets.key")
    sealer = Sealer(read_key(tmp / "state" / "secrets.key"))
    for webhook in rows["webhooks"]:
        # A platform does not open with a key that its secrets were not sealed with.
        webhook["secret"] = sealer.seal("pndis_", f"webhook {webhook['id']}")
    with closing(open_database(tmp / "state", None)) as made:
        migrate(made)
        with made.migrating() as connection:
            for name, each in rows.items():
                connection.execute(sa.insert(Base.metadata.tables[name]), each)
    platform = open_platform(tmp / "state")
    with closing(platform.database):
        take(platform, tmp / "platform.backup")
        expected = digests(platform)
    put(tmp / "platform.backup", target)
    assert rows_of(target) == expected
    restored = target.open()
    with closing(restored.database), restored.database.snapshot() as connection:
        for name, each in rows.items():
            table = Base.metadata.tables[name]
            found = [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            assert sorted(found, key=_id) == sorted(each, key=_id)


def _id(row: Row) -> UUID:
    found: UUID = row["id"]
    return found


@given(
    values=st.lists(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just([]),
        max_size=9,
    )
)
def test_a_line_is_a_row_or_refused(values: list[Any]) -> None:
    columns = tuple(Column(name=f"c_{kind}", kind=kind) for kind in Kind)
    table = Rows(TableHead(name="table", columns=columns))
    try:
        row = table.decode(json.dumps(values).encode())
    except BackupError:
        return
    assert len(row) == len(Kind) == len(values)


def test_every_table_and_column_has_a_kind() -> None:
    heads = {each.name: {column.name for column in each.columns} for each in heads_of(Base.metadata)}
    assert heads == {
        name: {column.name for column in table.columns} for name, table in Base.metadata.tables.items()
    }
