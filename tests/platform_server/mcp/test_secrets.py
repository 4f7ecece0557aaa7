"""Secrets that actions make: in no byte of a session and no line of the log; read once, by their user."""

from __future__ import annotations

import io
import json
import os
import pty
import shlex
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from platform_server import logs, secret_pickups
from platform_server.database import Database, Work
from platform_server.logs import LogFormat
from platform_server.permissions import Permission
from platform_server.state_folder import Platform
from platform_server.tables import SecretPickup
from tests.platform_server.api import Api, Pipeline
from tests.platform_server.clock import Clock
from tests.platform_server.made import Made
from tests.platform_server.mcp.conftest import Served
from tests.platform_server.mcp.connecting import COMMAND, ROOT, Wire, call, over_http, over_stdio

# Each action that makes a secret, its arguments, and the field that has it.
MAKERS: dict[str, tuple[dict[str, Any], str]] = {
    "provision_disk_image_webhook": ({"label": "pipeline"}, "webhook_secret"),
    "system_provision_ci_worker": ({"name": "runner"}, "token_plaintext"),
}


def made_by(served: Served, token: str | None = None, maker: str = "provision_disk_image_webhook") -> Any:
    """The answer of an action that makes a secret."""

    async def make() -> Any:
        async with over_http(served.url, token or served.token) as client:
            return await call(client, maker, **MAKERS[maker][0])

    return anyio.run(make)


def secrets_of(answer: Any) -> str:
    """The path that reads an answer's secret."""
    return f"/secrets/{answer['read_secret_once']['secret_id']}"


def command(answer: Any, token: str) -> subprocess.CompletedProcess[str]:
    """Run the command that an answer names."""
    words = shlex.split(answer["read_secret_once"]["command"])
    assert words[:2] == ["disk-image", "platform"]
    return subprocess.run(
        [*COMMAND, *words[2:]],
        cwd=ROOT,
        env={**os.environ, "DISK_IMAGE_PLATFORM_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.one_database
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_no_byte_over_http_and_no_line_of_the_log_has_a_secret(
    served: Served, rest: Api, maker: str, mode: str
) -> None:
    wire, lines = Wire(), io.StringIO()
    logs.start_log(LogFormat.JSON, 0, lines)
    arguments, field = MAKERS[maker]

    async def session() -> Any:
        async with over_http(served.url, served.token, wire, mode=mode) as client:
            await client.list_tools()
            made = await call(client, maker, **arguments)
            await call(client, "system_list_disk_image_webhooks")
            await call(client, "system_list_ci_workers")
            await call(client, "recent_events")
            return made

    made = anyio.run(session)
    assert made[field] is None
    assert field in made["note"]
    read = rest.post(secrets_of(made))
    assert (read["action"], read["field"]) == (maker, field)
    secret = read["secret"]
    assert len(secret) > 40
    assert maker.encode() in wire.bytes
    # a preview is the start, and no more of it: two characters after what all have in common
    for hidden in (secret, secret.partition("_")[2], secret[:9], served.token):
        assert hidden.encode() not in wire.bytes
        assert hidden not in lines.getvalue()
    assert "request" in lines.getvalue()


@pytest.mark.one_database
def test_no_byte_over_stdio_has_a_secret(made: Made, tmp_path: Path) -> None:
    async def session() -> Any:
        with (tmp_path / "errors").open("w") as errors:
            async with over_stdio(made, errors=errors, wire=tmp_path) as client:
                return [await call(client, maker, **MAKERS[maker][0]) for maker in MAKERS]

    answers = anyio.run(session)
    wire = (tmp_path / "answered").read_text()
    for answer, (_, field) in zip(answers, MAKERS.values(), strict=True):
        assert answer[field] is None
        done = command(answer, made.admin_token)
        assert (done.returncode, done.stderr) == (0, "")
        secret = done.stdout.strip()
        assert len(secret) > 40
        assert secret not in wire
        assert secret not in (tmp_path / "errors").read_text()
        again = command(answer, made.admin_token)
        assert again.returncode == 1
        assert "can be read once" in again.stderr
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in wire.splitlines())


def test_the_secret_that_is_read_is_the_webhooks(
    served: Served, rest: Api, platform_id_of: Callable[[str], str]
) -> None:
    platform_id_of("debian")
    made = made_by(served)
    done = command(made, served.token)
    assert (done.returncode, done.stderr) == (0, "")
    pipeline = Pipeline(rest.client, served.platform.clock, made["webhook_id"], done.stdout.strip())
    assert pipeline.plain().status_code == 202


@pytest.mark.parametrize("maker", MAKERS)
def test_what_was_made_and_its_secret_are_there_together_or_neither(
    served: Served, rest: Api, maker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secret is written last, and what fails then takes all of it along, as a kill would."""
    keep = secret_pickups.keep

    def fail(session: Session, *arguments: Any) -> None:
        keep(session, *arguments)
        session.flush()
        assert {type(each) for each in session} > {SecretPickup}
        raise RuntimeError("trial")

    async def refused() -> Any:
        async with over_http(served.url, served.token) as client:
            return await client.call_tool(maker, MAKERS[maker][0])

    monkeypatch.setattr(secret_pickups, "keep", fail)
    assert anyio.run(refused).is_error
    assert rows(served.platform) == []
    assert rest.get("/disk_image_webhooks")["disk_image_webhooks"] == []
    assert rest.get("/ci_workers")["ci_workers"] == []
    monkeypatch.undo()
    written: list[object] = []
    write = Database.write

    async def count(database: Database, work: Work[Any]) -> Any:
        written.append(work)
        return await write(database, work)

    monkeypatch.setattr(Database, "write", count)
    made = made_by(served, maker=maker)
    assert len(written) == 1
    assert rest.post(secrets_of(made))["secret"]


@pytest.fixture
def platform_id_of(rest: Api) -> Callable[[str], str]:
    return lambda name: str(rest.post("/node_platforms", {"node_platform": {"name": name}})["id"])


def test_a_secret_is_read_once_however_many_read_at_once(served: Served, rest: Api) -> None:
    path = secrets_of(made_by(served))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: rest.call("POST", path), range(16)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 15
    (read,) = [answer for answer in answers if answer.status_code == 200]
    assert read.headers["cache-control"] == "no-store"
    refused = next(answer.json() for answer in answers if answer.status_code == 409)
    assert "was read at" in refused["error"]
    assert "if it was not you" in refused["hint"]


def test_only_the_user_who_made_a_secret_reads_it(served: Served, rest: Api) -> None:
    made = made_by(served)
    for user, account in (("admin", "other"), ("colleague", "default")):
        stranger = rest.with_token(served.token_of(user, "*", account=account))
        assert "not in this account" in stranger.error(404, "POST", secrets_of(made))
    assert rest.post(secrets_of(made))["secret"].startswith("pndis_")


def test_a_token_without_the_permission_makes_what_it_can_not_read(served: Served, rest: Api) -> None:
    token = served.token_of("admin", Permission.WEBHOOKS_CREATE)
    made = made_by(served, token)
    refused = rest.with_token(token).error(403, "POST", secrets_of(made))
    assert "system.secrets.read" in refused
    assert rest.post(secrets_of(made))["secret"].startswith("pndis_")


def test_a_secret_that_nobody_reads_is_deleted(served: Served, rest: Api, clock: Clock) -> None:
    path = secrets_of(made_by(served))
    clock.pass_by(minutes=15)
    assert "expired at" in rest.error(409, "POST", path)
    assert rows(served.platform)[0].sealed is not None
    served.platform.database.write_now(lambda on: secret_pickups.purge(on, clock()))
    assert rows(served.platform)[0].sealed is None
    assert "expired at" in rest.error(409, "POST", path)
    clock.pass_by(days=7)
    served.platform.database.write_now(lambda on: secret_pickups.purge(on, clock()))
    assert rows(served.platform) == []


def test_a_secret_at_rest_is_sealed_and_gone_when_it_was_read(served: Served, rest: Api, made: Made) -> None:
    secret = rest.post(secrets_of(made_by(served)))["secret"]
    (row,) = rows(served.platform)
    assert row.sealed is None
    assert row.read_at == served.platform.clock()
    assert secret.encode() not in made.content()


def test_a_secret_copied_to_another_row_does_not_open(served: Served, rest: Api, clock: Clock) -> None:
    theirs = made_by(served, served.token_of("colleague", "*"))
    mine = made_by(served, maker="system_provision_ci_worker")

    def copy(session: Any) -> None:
        found = {str(row.id): row for row in session.scalars(select(SecretPickup))}
        their = found[theirs["read_secret_once"]["secret_id"]]
        found[mine["read_secret_once"]["secret_id"]].sealed = their.sealed

    served.platform.database.write_now(copy)
    answer = rest.client.post(
        f"/api/v1/system{secrets_of(mine)}", headers={"authorization": f"Bearer {rest.token}"}
    )
    assert answer.status_code == 500
    assert "pndis_" not in answer.text


def rows(platform: Platform) -> list[SecretPickup]:
    return platform.database.read_now(lambda on: list(on.scalars(select(SecretPickup))))


@pytest.mark.one_database
@pytest.mark.parametrize("where", ["--state", "--url"])
@pytest.mark.parametrize(
    ("secret_id", "says"), [("../healthz", "expected"), (str(UUID(int=0)), "not in this account")]
)
def test_an_id_that_is_none_of_a_secret_is_refused(
    served: Served, made: Made, where: str, secret_id: str, says: str
) -> None:
    place = list(made.argv) if where == "--state" else [where, served.url]
    words = ["disk-image", "platform", "secret", *place, secret_id]
    answer = {"read_secret_once": {"command": shlex.join(words)}}
    done = command(answer, served.token)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert served.token not in done.stderr


@pytest.mark.one_database
def test_secrets_are_shown_where_standard_error_is_a_terminal(made: Made) -> None:
    async def session(errors: Any) -> Any:
        async with over_stdio(made, "--show-secrets", errors=errors) as client:
            return [(await call(client, maker, **MAKERS[maker][0])) for maker in MAKERS]

    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as errors, os.fdopen(controller, "rb", buffering=0):
        answers = anyio.run(session, errors)
    for answer, (_, field) in zip(answers, MAKERS.values(), strict=True):
        assert len(answer[field]) > 40
        assert answer["read_secret_once"] is None


@pytest.mark.one_database
def test_secrets_are_not_shown_where_nobody_looks_on(made: Made) -> None:
    done = subprocess.run(
        [*COMMAND, "mcp", *made.argv, "--show-secrets"],
        cwd=ROOT,
        env={**os.environ, "DISK_IMAGE_PLATFORM_TOKEN": made.admin_token},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected a terminal" in done.stderr
