"""A database that can't be written: its disk is full, fails, or is read-only. Who sends is told to come
again, who watches sees why, and what was answered with 2xx is there.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import httpx
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from platform_client.calls import heals
from platform_server import database as units
from platform_server import health, metrics, sweeps, worker
from platform_server.database import Database
from platform_server.errors import StateError, Unwritable
from platform_server.manager import tick
from platform_server.state_folder import Platform, open_platform
from platform_server.tables import Account, NodePlatform, Publication
from platform_server.verifier import verifier_of
from supply_chain.registry.wire import Answer
from tests.platform_server.api import Api, Pipeline
from tests.platform_server.clock import Clock
from tests.platform_server.made import Made
from tests.platform_server.process import ROOT
from tests.platform_server.rows import node_platform
from tests.platform_server.serving import serving


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check is a new one, and this machine's room is enough."""
    monkeypatch.setattr(health, "_FRESH", 0.0)
    monkeypatch.setattr(health, "RESERVE", 0)
    monkeypatch.setattr(units, "_STEADY", 0.0)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB; only root can make one."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs failed: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def _fill(path: Path) -> None:
    """Take all the room that is left."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            return


def _rows(platform: Platform) -> set[str]:
    return {str(each) for each in platform.database.read_now(lambda on: on.scalars(select(Publication.id)))}


def test_a_full_disk_under_sqlite_is_told_to_everybody_and_passes(
    now: None, made_on_sqlite: Made, small: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    made = made_on_sqlite.copied(small / "state")
    platform = made.open(clock=clock)
    with (
        closing(platform.database),
        serving(platform) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}") as client,
    ):
        api = Api(client, made.admin_token)
        api.post("/node_platforms", {"node_platform": {"name": "debian"}})
        webhook = api.post("/disk_image_webhooks", {"label": "pipeline"})
        pipeline = Pipeline(client, clock, webhook["webhook_id"], webhook["webhook_secret"])
        assert client.get("/readyz").status_code == 200
        _fill(small / "rest")
        accepted: list[str] = []
        for number in range(2000):
            answer = pipeline.plain(git_sha=f"{number:040x}", sbom_path="x" * 2000)
            if answer.status_code != 202:
                break
            accepted.append(answer.json()["publication_id"])
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "30"
        told = answer.json()
        assert (told["success"], told["status"], told["reason"]) == (False, "error", "unavailable")
        assert told["note"].startswith("the platform's database can't be written: its disk ")
        assert heals(Answer(answer.url, answer.status_code, answer.headers, answer.content))

        for number in range(2000):
            refused = client.post(
                "/api/v1/system/node_platforms",
                json={"node_platform": {"name": f"more-{number}", "description": "x" * 500}},
                headers={"authorization": f"Bearer {made.admin_token}"},
            )
            if refused.status_code != 201:
                break
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
        assert refused.json()["error"].startswith("the platform's database can't be written: its disk ")
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["checks"]["database"].startswith("can't be written: its disk ")
        errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
        assert {each.message.partition(" can't be written: its disk ")[1] != "" for each in errors} == {True}
        assert not any(each.exc_info for each in errors)

        (small / "rest").unlink()
        assert client.get("/readyz").json()["checks"]["database"] == "ok"
        assert "can be written again" in caplog.text
        accepted.append(pipeline.plain(git_sha="f" * 40).json()["publication_id"])
        assert _rows(platform) == set(accepted)


def test_what_sqlite_says_of_a_file_that_cannot_be_written(made_on_sqlite: Made, tmp_path: Path) -> None:
    made = made_on_sqlite.copied(tmp_path / "state")
    database = made.open().database

    def limited(pragma: str) -> str:
        def work(session: Session) -> None:
            session.connection().exec_driver_sql(f"PRAGMA {pragma}")
            session.add(Account(name="x" * 1_000_000, created_at=Clock()()))

        with pytest.raises(Unwritable) as raised:
            database.write_now(work)
        assert isinstance(raised.value.__cause__, DBAPIError)
        return raised.value.what.rpartition(": ")[2]

    pages = database.read_now(lambda on: on.connection().exec_driver_sql("PRAGMA page_count").scalar_one())
    assert limited(f"max_page_count={pages}") == "its disk is full"
    assert limited("query_only=ON") == "it is read-only"
    database.close()


LIMITED = """
import resource, signal, sys
from datetime import UTC, datetime
from platform_server.database import Database
from platform_server.errors import Unwritable
from platform_server.tables import Account
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
database = Database(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
add = lambda on: on.add(Account(name="x" * 1_000_000, created_at=datetime.now(UTC)))
try:
    database.write_now(add)
except Unwritable as error:
    print(error.what, database.trouble(), sep="\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
database.write_now(add)
database.close()
"""


def test_a_disk_that_fails_is_told_as_one(made_on_sqlite: Made, tmp_path: Path) -> None:
    """A file that may not grow: SQLite's write fails, and not for want of room."""
    made = made_on_sqlite.copied(tmp_path / "state")
    url = f"sqlite:///{made.folder / 'platform.db'}"
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, url], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.splitlines() == [
        "the platform's database can't be written: its disk fails, or is full",
        "its disk fails, or is full",
    ]


def test_a_folder_that_is_gone_is_told_as_one(made_on_sqlite: Made, tmp_path: Path) -> None:
    made = made_on_sqlite.copied(tmp_path / "state")
    database = made.open().database
    database.close()
    shutil.rmtree(made.folder)
    for call in (database.write_now, database.read_now):
        with pytest.raises(Unwritable, match="its file can't be opened"):
            call(lambda on: on.scalar(select(func.count(Account.id))))
    database.close()


def test_a_read_only_disk_is_an_error_with_its_reason_at_the_start(
    made_on_sqlite: Made, small: Path
) -> None:
    made = made_on_sqlite.copied(small / "state")
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    with pytest.raises(StateError) as raised:
        open_platform(made.folder)
    assert str(made.folder) in raised.value.what
    assert "see to it, then try again" in raised.value.hint


FAILS = """
CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'trial' USING ERRCODE = '{state}'; END $$
"""


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("state", "why"),
    [("53100", "its disk is full"), ("25006", "it is read-only")],
    ids=["full", "read-only"],
)
def test_what_postgresql_says_of_a_disk_that_cannot_be_written(
    now: None, made_elsewhere: Made, clock: Clock, state: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    platform = made_elsewhere.open(clock=clock)
    with (
        closing(platform.database),
        serving(platform) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}") as client,
    ):
        api = Api(client, made_elsewhere.admin_token)
        api.post("/node_platforms", {"node_platform": {"name": "debian"}})
        webhook = api.post("/disk_image_webhooks", {"label": "pipeline"})
        pipeline = Pipeline(client, clock, webhook["webhook_id"], webhook["webhook_secret"])
        for statement in (
            FAILS.format(state=state),
            "CREATE TRIGGER fails BEFORE INSERT ON publications EXECUTE FUNCTION fails()",
            "CREATE TRIGGER fails BEFORE INSERT ON node_platforms EXECUTE FUNCTION fails()",
            "CREATE TRIGGER fails BEFORE UPDATE ON alembic_version EXECUTE FUNCTION fails()",
        ):
            platform.database.write_now(lambda on, said=statement: on.execute(text(said)))  # type: ignore[misc]
        answer = pipeline.plain(git_sha="a" * 40)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
        assert answer.json()["note"] == f"the platform's database can't be written: {why}"
        refused = client.post(
            "/api/v1/system/node_platforms",
            json={"node_platform": {"name": "other"}},
            headers={"authorization": f"Bearer {made_elsewhere.admin_token}"},
        )
        assert refused.status_code == 503
        assert client.get("/readyz").json()["checks"]["database"] == f"can't be written: {why}"
        for table in ("publications", "node_platforms", "alembic_version"):
            platform.database.write_now(
                lambda on, on_table=table: on.execute(text(f"DROP TRIGGER fails ON {on_table}"))  # type: ignore[misc]
            )
        assert client.get("/readyz").status_code == 200
        assert pipeline.plain(git_sha="a" * 40).status_code == 202


@pytest.mark.postgres
def test_a_write_by_mistake_where_only_is_read_is_no_trouble_of_the_database(made_elsewhere: Made) -> None:
    database = made_elsewhere.open().database
    with pytest.raises(DBAPIError):
        database.read_now(lambda on: on.execute(text("UPDATE accounts SET name = 'x'")))
    assert database.trouble() is None
    database.close()


def test_a_worker_waits_for_a_database_that_cannot_be_written_and_says_so_in_a_line(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited: list[float] = []

    async def fails(platform: Platform, verifier: object) -> bool:
        raise Unwritable("the platform's database can't be written: trial", "see to it")

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "work", fails)
    monkeypatch.setattr(anyio, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        anyio.run(worker._run_one, platform, verifier_of(None))
    assert waited == [30.0]
    (line,) = _warnings(caplog)
    assert (line.levelname, line.exc_info) == ("WARNING", None)
    assert line.message.endswith("can't be written: trial")


@pytest.mark.parametrize("put", ["another", "nothing"])
def test_a_file_that_was_moved_away_while_it_is_served_takes_nothing(
    now: None, made_on_sqlite: Made, tmp_path: Path, clock: Clock, put: str, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite would go on with it under its new name: what was answered would be gone after a restart."""
    made = made_on_sqlite.copied(tmp_path / "state")
    platform = made.open(clock=clock)
    with (
        closing(platform.database),
        serving(platform) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}") as client,
    ):
        api = Api(client, made.admin_token)
        api.post("/node_platforms", {"node_platform": {"name": "debian"}})
        hook = api.post("/disk_image_webhooks", {"label": "pipeline"})
        pipeline = Pipeline(client, clock, hook["webhook_id"], hook["webhook_secret"])
        assert pipeline.standard().status_code == 202
        file = made.folder / "platform.db"
        file.rename(tmp_path / "old.db")
        if put == "another":
            shutil.copyfile(made_on_sqlite.folder / "platform.db", file)
        why = "its file was moved or replaced: start the platform again"
        answer = pipeline.standard()
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert client.get("/api/v1/system/events", headers=_as(made)).status_code == 503
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["database"]) == (503, why)
        assert why in caplog.text
        # put back, it is what it was
        (tmp_path / "old.db").rename(file)
        assert pipeline.standard().status_code == 202
        assert client.get("/readyz").status_code == 200


def _as(made: Made) -> dict[str, str]:
    return {"authorization": f"Bearer {made.admin_token}"}


def test_sweeps_and_the_manager_end_at_once_where_nothing_can_be_written(
    platform: Platform, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two"):
        platform.database.write_now(lambda on, name=name: node_platform(on, clock(), name))  # type: ignore[misc]
    ids = platform.database.read_now(lambda on: on.scalars(select(NodePlatform.id)).all())
    asked: list[object] = []

    async def fails(database: Database, work: object) -> None:
        asked.append(work)
        raise Unwritable("the platform's database can't be written: trial", "see to it")

    monkeypatch.setattr(Database, "write", fails)
    monkeypatch.setattr(tick, "_open", lambda on: ids)

    async def both() -> None:
        for work in (sweeps.sweep_everything, tick.tick):
            with metrics.sweeping("manager"):
                await work(platform)

    anyio.run(both)
    assert len(asked) == 2
    assert [(line.levelname, line.exc_info) for line in _warnings(caplog)] == [("WARNING", None)] * 2


def _warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Whatever level other tests have left the log at."""
    return [each for each in caplog.records if each.levelno >= logging.WARNING]
