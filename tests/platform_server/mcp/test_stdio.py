"""`disk-image platform mcp`: the protocol alone on standard output, for a user, until its input ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from pipelines.commands.platform import mcp as mcp_command
from platform_server import workers
from platform_server.accounts import revoke_tokens, user_token
from platform_server.errors import Forbidden
from platform_server.identifiers import new_id
from platform_server.mcp.server import require_user
from platform_server.permissions import Caller, Permission
from platform_server.state_folder import Platform
from platform_server.tokens import authenticate
from tests.platform_server.made import Made
from tests.platform_server.mcp.connecting import COMMAND, ROOT, call, over_stdio, refusal

pytestmark = pytest.mark.one_database

HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
CALL = {
    "jsonrpc": "2.0",
    "id": 2,
    "method": "tools/call",
    "params": {"name": "recent_events", "arguments": {}},
}


def start(made: Made, *arguments: str, token: str | None = None) -> subprocess.Popen[bytes]:
    """The command, with a token or the administrator's; an empty one is none."""
    return subprocess.Popen(
        [*COMMAND, "mcp", *made.argv, *arguments],
        cwd=ROOT,
        env={**os.environ, "DISK_IMAGE_PLATFORM_TOKEN": made.admin_token if token is None else token},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def refused(made: Made, *arguments: str, token: str | None = None) -> Any:
    """Exit code and standard error of a command that ends by itself, and says nothing of the protocol."""
    with start(made, *arguments, token=token) as running:
        output, errors = running.communicate(timeout=60)
    assert output == b""
    assert b"Traceback" not in errors
    return running.returncode, errors.decode()


def say(made: Made, lines: Sequence[bytes], *arguments: str) -> Any:
    """What is answered up to CALL's answer, and what is said beside it until the input's end ends it."""
    with start(made, *arguments) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"".join(line + b"\n" for line in lines))
        running.stdin.flush()
        answers = [json.loads(running.stdout.readline())]
        while answers[-1].get("id") != CALL["id"]:
            answers.append(json.loads(running.stdout.readline()))
        output, errors = running.communicate(timeout=60)
    assert (running.returncode, output) == (0, b"")
    return answers, errors.decode()


def test_standard_output_is_the_protocol_alone(made: Made) -> None:
    lines = [json.dumps(each).encode() for each in (HELLO, CALL)]
    answers, errors = say(made, lines, "--log-level", "debug", "--json")
    assert [answer["id"] for answer in answers] == [1, 2]
    assert answers[1]["result"]["structuredContent"] == {"events": [], "count": 0}
    assert made.admin_token not in errors


def test_lines_that_are_no_messages_end_nothing(made: Made) -> None:
    noise = [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"null",
        b'{"jsonrpc":"2.0"}',
        json.dumps([CALL]).encode(),
    ]
    lines = [json.dumps(HELLO).encode(), *noise, json.dumps(CALL).encode()]
    answers, errors = say(made, lines)
    assert answers[-1]["result"]["isError"] is False
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("token", "code", "says"),
    [
        ("", 2, "DISK_IMAGE_PLATFORM_TOKEN is not set"),
        ("pnu_unknown", 1, "no valid token"),
        ("swt_unknown", 1, "no valid token"),
    ],
)
def test_without_a_token_it_does_not_start(made: Made, token: str, code: int, says: str) -> None:
    found, errors = refused(made, token=token)
    assert found == code
    assert says in errors


def test_a_workers_token_does_not_start_it(made: Made, platform: Platform) -> None:
    def make(session: Any) -> str:
        caller = authenticate(session, made.admin_token)
        return workers.create(session, caller, "runner", None, platform.clock())[1]

    token = platform.database.write_now(make)
    code, errors = refused(made, token=token)
    assert code == 1
    assert "is a worker: expected a user's token" in errors


def test_a_token_is_no_argument(made: Made) -> None:
    code, errors = refused(made, "--token", "pnu_canary")
    assert code == 2
    assert "unrecognized arguments" in errors


def test_a_folder_without_a_platform_is_refused(made: Made, tmp_path: Path) -> None:
    code, errors = refused(Made(tmp_path / "nothing", made.admin_token))
    assert code == 1
    assert "no platform's state" in errors


def test_a_revoked_token_and_a_missing_permission_end_a_call(made: Made, platform: Platform) -> None:
    token = platform.database.write_now(
        lambda on: user_token(on, "default", "leaver", [Permission.NODES_READ], platform.clock())
    )

    async def session() -> None:
        with open(os.devnull, "w") as errors:  # noqa: ASYNC230
            async with over_stdio(made, errors=errors, token=token) as client:
                assert "recent_events" in {tool.name for tool in (await client.list_tools()).tools}
                assert (await call(client, "recent_events"))["count"] == 0
                assert "lacks the permission" in await refusal(client, "system_list_ci_workers")
                platform.database.write_now(
                    lambda on: revoke_tokens(on, "default", "leaver", platform.clock())
                )
                assert (await refusal(client, "recent_events")).startswith("no valid token\n")
                with pytest.raises(Exception, match="no valid token"):
                    await client.session.list_tools()

    anyio.run(session)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_it_waits(made: Made, number: signal.Signals) -> None:
    with start(made) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(json.dumps(HELLO).encode() + b"\n")
        running.stdin.flush()
        assert json.loads(running.stdout.readline())["id"] == 1
        running.send_signal(number)
        output, errors = running.communicate(timeout=60)
    assert running.returncode == -number
    assert b"Traceback" not in output + errors


def test_the_page_that_says_how_to_connect_is_right(made: Made, platform: Platform) -> None:
    page = (ROOT / "docs" / "how-to" / "connect-an-mcp-client.md").read_text()
    blocks = [json.loads(each) for each in re.findall(r"```json\n(.*?)```", page, re.S)]
    http, stdio = (each["mcpServers"]["platform"] for each in blocks[:2])
    assert (http["type"], http["url"]) == ("http", "https://platform.example/mcp")
    assert stdio["command"] == "disk-image"
    assert stdio["env"].keys() == {"DISK_IMAGE_PLATFORM_TOKEN"}
    words = [str(made.folder) if each == "/var/lib/disk-image" else each for each in stdio["args"]]
    assert words[:4] == ["platform", "mcp", "--state", str(made.folder)]

    async def session() -> dict[str, Any]:
        with open(os.devnull, "w") as errors:  # noqa: ASYNC230
            async with over_stdio(made, *words[4:], errors=errors) as client:
                return await call(client, "provision_disk_image_webhook", label="pipeline")

    answer = anyio.run(session)
    assert answer["webhook_url"].startswith("https://platform.example/api/v1/system/webhooks/")
    shown = blocks[2]["read_secret_once"]
    assert shown.keys() == answer["read_secret_once"].keys()


def test_callers_are_users() -> None:
    """A worker has no user; the check must not depend on its permissions."""
    with pytest.raises(Forbidden, match="is a worker"):
        require_user(Caller(new_id(), "runner", frozenset({"*"}), worker_id=new_id()))


@pytest.mark.parametrize(
    ("argument", "environment", "options"),
    [
        (None, None, []),
        ("postgresql://ada@db/platform", None, ["--database", "postgresql://ada@db/platform"]),
        (None, "postgresql://ada@db/platform", ["--database", "postgresql://ada@db/platform"]),
        (None, "postgresql://ada:canary@db/platform", []),
        (None, "postgresql://ada@db/platform?password=canary", []),
    ],
)
def test_the_command_that_reads_a_secret_names_the_database_and_no_password(
    monkeypatch: pytest.MonkeyPatch, argument: str | None, environment: str | None, options: list[str]
) -> None:
    monkeypatch.delenv("DISK_IMAGE_PLATFORM_DATABASE", raising=False)
    if environment is not None:
        monkeypatch.setenv("DISK_IMAGE_PLATFORM_DATABASE", environment)
    args = Namespace(state=Path("/state"), database=argument)
    assert mcp_command.read_with(args) == ["--state", "/state", *options]
