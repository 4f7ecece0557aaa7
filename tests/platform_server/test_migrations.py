"""Migrations: the schema that the tables say, forward and back, whole or not at all."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from platform_server.database import Database
from platform_server.errors import StateError
from platform_server.migrations.run import current, migrate, newest
from platform_server.state_folder import open_platform
from platform_server.tables import Base
from tests.platform_server.conftest import Made


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/empty.db")


def test_the_newest_schema_is_what_the_tables_say(database: Database) -> None:
    migrate(database)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        constraints = inspect(connection).get_check_constraints("publications")
    assert any("'awaiting_upload'" in each["sqltext"] for each in constraints)
    database.close()


def test_forward_and_back(database: Database) -> None:
    assert migrate(database) is None
    assert current(database) == newest()
    assert migrate(database, "base") == newest()
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    assert migrate(database) is None
    assert migrate(database) == newest()
    database.close()


def test_a_migration_that_fails_halfway_leaves_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic.operations import Operations

    made: list[str] = []
    real = Operations.create_table

    def create_table(self: Operations, name: str, *columns: Any, **options: Any) -> Any:
        if len(made) == 5:
            raise OSError("killed")
        made.append(name)
        return real(self, name, *columns, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Operations, "create_table", create_table)
        with pytest.raises(OSError, match="killed"):
            migrate(database)
    assert len(made) == 5
    assert inspect(database.engine).get_table_names() == []
    migrate(database)
    assert current(database) == newest()
    database.close()


def test_an_unknown_revision_and_a_newer_schema_are_refused(made: Made, database: Database) -> None:
    with pytest.raises(StateError, match="revision 9999 is not one of this program's"):
        migrate(database, "9999")
    with sqlite3.connect(made.folder / "platform.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StateError, match=r"expected schema \d+, found 9999"):
        open_platform(made.folder)
    database.close()


def test_an_older_schema_is_not_served(made: Made) -> None:
    database = Database(f"sqlite:///{made.folder}/platform.db")
    migrate(database, "base")
    database.close()
    with pytest.raises(StateError, match="an empty database") as raised:
        open_platform(made.folder)
    assert "disk-image platform migrate" in raised.value.hint
