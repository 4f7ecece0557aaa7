"""Migrations: the schema that the tables say, forward and back, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from platform_server.database import Database
from platform_server.errors import StateError
from platform_server.migrations.run import current, migrate, newest
from platform_server.state_folder import migrate_folder
from platform_server.tables import Base
from tests.platform_server.conftest import DATABASES
from tests.platform_server.made import Made
from tests.postgres_server import PostgresServer


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty one."""
    if request.param == "sqlite":
        yield Database(f"sqlite:///{tmp_path}/empty.db")
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = server.create()
    yield Database(server.url(name))
    server.drop(name)


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
    platform = made.open()
    platform.database.write_now(
        lambda on: on.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    )
    platform.database.close()
    with pytest.raises(StateError, match=r"expected schema \d+, found 9999"):
        made.open()
    database.close()


def test_an_older_schema_is_not_served(made: Made) -> None:
    migrate_folder(made.folder, "base", made.database)
    with pytest.raises(StateError, match="an empty database") as raised:
        made.open()
    assert "disk-image platform migrate" in raised.value.hint
