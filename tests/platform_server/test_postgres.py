"""The URL of a PostgreSQL database: what is shown of it, and what is said when it can't be had."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from platform_server.errors import StateError
from platform_server.postgres import Server
from platform_server.state_folder import initialise, open_platform
from tests.platform_server.clock import START
from tests.platform_server.made import Made
from tests.postgres_server import PASSWORD, PostgresServer

SECRET = "pass%2Fword"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://ci@db.example/images", "postgresql://ci@db.example/images"),
        (f"postgres://ci:{SECRET}@db.example:5433/images", "postgresql://ci@db.example:5433/images"),
        (f"postgresql://ci@db/images?password={SECRET}&sslmode=require", "postgresql://ci@db/images"),
        (f"postgresql://ci:{SECRET}@a:1,b:2/images", "postgresql://ci@a:1,b:2/images"),
        ("postgresql://ci@a,b:5433/images", "postgresql://ci@a,b:5433/images"),
        ("postgresql://ci@/images?host=/run/postgresql", "postgresql://ci@%2Frun%2Fpostgresql/images"),
        ("postgresql://ci@[::1]:5433/images", "postgresql://ci@::1:5433/images"),
        ("postgresql://ci@/images?host=@abstract", "postgresql://ci@%40abstract/images"),
        ("postgresql:///?service=platform", "postgresql:///?service=platform"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, name: str) -> None:
    server = Server(url)
    assert server.name == name
    assert SECRET not in repr(server)
    assert server.has_password is (SECRET in url)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ci:secret@db/images",
        "secret",
        "postgresql://ci:secret word@db/images",
        "postgresql://ci:secret@db/images?unknown=1",
        "postgresql://ci:secret%zz@db/images",
        "postgresql://ci:secret@[::1/images",
        "postgresql://ci:p@secret@db/images",
        "postgresql://ci:p/secret@db/images",
        "postgresql://ci:5/secret@db/images",
        "postgresql://ci@db:secret@db.example/images",
    ],
)
def test_a_url_that_cannot_be_read_is_not_shown(url: str) -> None:
    with pytest.raises(StateError, match="the database's URL") as raised:
        Server(url).require()
    assert "secret" not in f"{raised.value.what} {raised.value.hint}"


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    url = f"postgresql://ci:secret@/images?host={tmp_path}"
    with pytest.raises(StateError, match="No such file or directory") as raised:
        initialise(tmp_path / "state", START, url)
    assert "see that the server runs" in raised.value.hint
    assert "secret" not in raised.value.what
    assert not (tmp_path / "state").exists()


@pytest.mark.postgres
def test_a_wrong_password_user_or_database(postgres: PostgresServer, tmp_path: Path) -> None:
    name = postgres.create()
    wrong = {
        postgres.loopback(name, "another secret"): ("password authentication failed", "PGPASSWORD"),
        postgres.loopback("nothing"): ('database "nothing" does not exist', "createdb"),
        postgres.url(name, "nobody"): ('role "nobody" does not exist', "see that the server runs"),
    }
    for url, (what, hint) in wrong.items():
        with pytest.raises(StateError, match=what) as raised:
            initialise(tmp_path / "state", START, url)
        assert hint in raised.value.hint
        assert "secret" not in raised.value.what
    initialise(tmp_path / "state", START, postgres.loopback(name))
    postgres.drop(name)


@pytest.mark.postgres
def test_an_encoding_that_lacks_letters_and_a_schema_that_may_not_be_used(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    latin, foreign = "latin", postgres.create()
    postgres.run("CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING 'LATIN1'", latin, "platform")
    postgres.run("CREATE ROLE {} LOGIN", "stranger")
    with pytest.raises(StateError, match="expected the encoding UTF8, found LATIN1"):
        initialise(tmp_path / "state", START, postgres.url(latin))
    with pytest.raises(StateError, match="permission denied for schema public") as raised:
        initialise(tmp_path / "state", START, postgres.url(foreign, "stranger"))
    assert "GRANT CREATE, USAGE ON SCHEMA public" in raised.value.hint
    for name in (latin, foreign):
        postgres.drop(name)


@pytest.mark.postgres
def test_a_server_that_is_too_old(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform_server.postgres.OLDEST", 99)
    with pytest.raises(StateError, match=r"expected PostgreSQL 99 or newer, found \d\d"):
        initialise(tmp_path / "state", START, postgres.url("postgres"))


@pytest.mark.postgres
def test_an_empty_database_and_a_folder_that_is_not_its_own(
    postgres: PostgresServer, made_elsewhere: Made, tmp_path: Path
) -> None:
    name = postgres.create()
    with pytest.raises(StateError, match="found an empty database") as raised:
        open_platform(made_elsewhere.folder, database=postgres.url(name))
    assert "disk-image platform init" in raised.value.hint
    with pytest.raises(StateError, match="set up already"):
        initialise(tmp_path / "second", START, made_elsewhere.database)
    postgres.drop(name)


def _platform(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [".venv/bin/disk-image", "platform", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        timeout=60,
    )


@pytest.mark.postgres
def test_the_commands_take_the_url_by_flag_and_environment_but_no_password_by_flag(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    name, state = postgres.create(), str(tmp_path / "state")
    url = postgres.loopback(name)
    given = _platform("init", "--state", state, "--database", url)
    assert given.returncode == 2
    assert "every user of this machine can read" in given.stderr
    assert PASSWORD not in given.stderr
    made = _platform("init", "--state", state, "--json", DISK_IMAGE_PLATFORM_DATABASE=url)
    assert made.returncode == 0, made.stderr
    assert sorted(os.listdir(state)) == ["secrets.key", "uploads"]
    without = Server(url).name
    for database in (without, ""):
        environment = {"PGPASSWORD": PASSWORD} if database else {"DISK_IMAGE_PLATFORM_DATABASE": url}
        arguments = ["--database", database] if database else []
        token = _platform("token", "--state", state, "--json", *arguments, **environment)
        assert json.loads(token.stdout)["token"].startswith("pnu_"), token.stderr
    missing = _platform("token", "--state", state)
    assert (missing.returncode, "--database" in missing.stderr) == (1, True)
    postgres.drop(name)
