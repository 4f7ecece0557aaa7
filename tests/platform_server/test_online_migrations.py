"""Migrations while servers serve: forward and back, several at once, and what a migration may do."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Inspector, inspect, select, text

from platform_server.database import Database
from platform_server.errors import StateError
from platform_server.migrations import run
from platform_server.migrations.run import current, is_compatible, migrate, newest
from platform_server.tables import Publication
from tests.platform_server.api import Api, Pipeline
from tests.platform_server.invariants import broken
from tests.platform_server.made import Made
from tests.platform_server.migrating import LATER
from tests.platform_server.serving import serving
from tests.platform_server.test_migrations import database

__all__ = ["database"]


def _migrating(url: str, revision: str) -> subprocess.Popen[str]:
    """Another process that migrates."""
    program = [sys.executable, "-m", "tests.platform_server.migrating", url, revision]
    root = Path(__file__).parents[2]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)


def _url(made: Made) -> str:
    return made.database or f"sqlite:///{made.folder}/platform.db"


def _execute(database: Database, statement: str) -> None:
    database.write_now(lambda on: on.execute(text(statement)))


@contextmanager
def _load(hooks: list[Pipeline]) -> Iterator[list[httpx.Response]]:
    """Deliveries to each of the servers, one after the other, for as long as the block lasts."""
    answers: list[httpx.Response] = []
    stopped = threading.Event()

    def send(hook: Pipeline) -> None:
        while not stopped.is_set():
            answers.append(hook.standard(git_sha=f"{len(answers):08x}{id(hook):032x}"[:40]))
            time.sleep(0.01)

    with ThreadPoolExecutor(len(hooks)) as threads:
        sending = [threads.submit(send, each) for each in hooks]
        try:
            yield answers
        finally:
            stopped.set()
        for each in sending:
            each.result()


@pytest.mark.timeout(300)
def test_servers_serve_while_the_schema_goes_forward_and_back(made: Made, clock: Any, settings: Any) -> None:
    """Two servers of this program's revision, and a later program's migration; none is refused or lost."""
    with ExitStack() as stack:
        platforms = [made.open(settings) for _ in range(2)]
        clients = []
        for platform in platforms:
            host, port = stack.enter_context(serving(platform))
            base = f"http://{host}:{port}"
            clients.append(stack.enter_context(httpx.Client(base_url=base, trust_env=False, timeout=60)))
        api = Api(clients[0], made.admin_token)
        api.post("/node_platforms", {"node_platform": {"name": "debian"}})
        hook = api.post("/disk_image_webhooks", {"label": "pipeline"})
        clock_now = platforms[0].clock
        hooks = [Pipeline(each, clock_now, hook["webhook_id"], hook["webhook_secret"]) for each in clients]
        with _load(hooks) as answers:
            for revision, before in ((LATER, newest()), (newest(), LATER)):
                said, wrong = _migrating(_url(made), revision).communicate(timeout=120)
                assert said.strip() == before, wrong
                # it is served, and served anew, whichever it is
                made.open(settings).database.close()
                assert all(each.get("/readyz").status_code == 200 for each in clients)
                count = len(answers)
                while len(answers) < count + 10:
                    time.sleep(0.05)
        assert {each.status_code for each in answers} == {202}, {each.text for each in answers}
        accepted = {UUID(each.json()["publication_id"]) for each in answers}
        assert len(accepted) == len(answers)
        there = platforms[0].database.read_now(lambda on: set(on.scalars(select(Publication.id))))
        assert there == accepted
        assert broken(platforms[0]) == []
    for platform in platforms:
        platform.database.close()


def test_migrations_at_once_are_one_after_the_other(database: Database) -> None:
    processes = [_migrating(database.url, LATER) for _ in range(3)]
    said = sorted(each.communicate(timeout=120)[0].strip() for each in processes)
    assert said == [LATER, LATER, "None"]
    database.close()


@pytest.mark.postgres
def test_a_table_in_use_is_waited_for_without_a_queue_behind_it(made_elsewhere: Made) -> None:
    """A transaction holds a webhook's row; the migration wants the table, gives way, and gets it later."""
    platform = made_elsewhere.open()
    with platform.database.engine.connect() as holding:
        holding.execute(text("LOCK TABLE webhooks IN ROW EXCLUSIVE MODE"))
        migrating = _migrating(_url(made_elsewhere), LATER)
        waits = []
        until = time.monotonic() + 4
        while time.monotonic() < until:
            began = time.monotonic()
            platform.database.write_now(lambda on: on.execute(text("UPDATE webhooks SET label = label")))
            waits.append(time.monotonic() - began)
        assert migrating.poll() is None
        assert current(platform.database) == newest()
    said, wrong = migrating.communicate(timeout=120)
    assert said.strip() == newest(), wrong
    assert current(platform.database) == LATER
    platform.database.close()
    # nobody waited as long as the transaction lasted
    assert max(waits) < 4


def test_a_server_accepts_later_schemas_of_its_epoch_alone(made: Made) -> None:
    database = Database(_url(made))
    for later, accepted in ((LATER, True), ("1000", False), ("later", False)):
        _execute(database, f"UPDATE alembic_version SET version_num = '{later}'")
        if accepted:
            made.open().database.close()
        else:
            with pytest.raises(StateError, match=f"expected schema {newest()}, found {later}"):
                made.open()
    database.close()


def test_which_schemas_a_server_works_on() -> None:
    schemas = ("0003", "0004", "0005", "0999", "1000", "x", "00041")
    assert [each for each in schemas if is_compatible("0004", each)] == ["0004", "0005", "0999"]


def test_every_migration_of_an_epoch_only_adds(database: Database) -> None:
    """What a server of the revision before finds and may leave out: the schemas themselves are compared."""
    scripts = ScriptDirectory.from_config(run._config())
    revisions = [each.revision for each in scripts.walk_revisions()][::-1]
    before: dict[str, Any] = {}
    for number, revision in enumerate(revisions):
        migrate(database, revision)
        after = _schema(inspect(database.engine))
        if number and revision[0] == revisions[number - 1][0]:
            assert _breaks(before, after) == [], revision
        before = after
    database.close()


def _schema(found: Inspector) -> dict[str, Any]:
    """Each table's columns, and what its rows must fulfil."""
    return {
        name: {
            "columns": {each["name"]: each for each in found.get_columns(name)},
            "checks": {each["sqltext"] for each in found.get_check_constraints(name)},
            "unique": {tuple(each["column_names"]) for each in found.get_indexes(name) if each["unique"]}
            | {tuple(each["column_names"]) for each in found.get_unique_constraints(name)},
        }
        for name in found.get_table_names()
    }


def _breaks(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What a server that knows the first schema would trip over on the second one."""
    lines = [f"table {name} is gone" for name in before.keys() - after.keys()]
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        columns = old["columns"]
        lines += [f"{name}.{each} is gone" for each in columns.keys() - new["columns"].keys()]
        for column, found in new["columns"].items():
            if column not in columns:
                if not found["nullable"] and found["default"] is None:
                    lines.append(f"{name}.{column} has no default, and may not be null")
            elif (str(found["type"]), found["nullable"]) != (
                str(columns[column]["type"]),
                columns[column]["nullable"],
            ):
                lines.append(f"{name}.{column} is another type")
        lines += [f"{name} is checked for {each}" for each in new["checks"] - old["checks"]]
        lines += [f"{name} is unique by {each}" for each in new["unique"] - old["unique"]]
    return lines


def test_what_is_more_than_an_addition_is_found(database: Database) -> None:
    migrate(database, "0001")
    before = _schema(inspect(database.engine))
    for statement in (
        "ALTER TABLE events DROP COLUMN source",
        "ALTER TABLE workers ADD COLUMN zone TEXT DEFAULT 'a' NOT NULL",
        "CREATE UNIQUE INDEX once ON workers (name)",
        "DROP TABLE instances",
    ):
        _execute(database, statement)
    assert sorted(_breaks(before, _schema(inspect(database.engine)))) == [
        "events.source is gone",
        "table instances is gone",
        "workers is unique by ('name',)",
    ]
    database.close()
