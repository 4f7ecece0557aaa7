"""MCP's own Inspector, as an operator runs it, against the platform over HTTP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from platform_server.action_table import ACTIONS
from tests.peers.programs import npm_program
from tests.platform_server.made import Made
from tests.platform_server.process import process

pytestmark = pytest.mark.peers

Inspect = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def inspect(made_on_sqlite: Made, tmp_path: Path) -> Iterator[Inspect]:
    """Runs the Inspector's command with these arguments, and a token unless there is to be none."""
    inspector = npm_program("mcp-inspector")
    made = made_on_sqlite.copied(tmp_path / "state")
    with process(made) as served:

        def run(*arguments: str, token: str | None = made.admin_token) -> subprocess.CompletedProcess[str]:
            header = () if token is None else ("--header", f"Authorization: Bearer {token}")
            url = f"{served.url}/mcp"
            return subprocess.run(
                [*inspector, "--cli", url, "--transport", "http", *arguments, *header],
                capture_output=True,
                text=True,
                check=False,
                cwd=tmp_path,
                env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
                timeout=300,
            )

        yield run


def test_the_inspector_lists_every_tool(inspect: Inspect) -> None:
    listed = inspect("--method", "tools/list")
    assert listed.returncode == 0, listed.stderr
    assert [tool["name"] for tool in json.loads(listed.stdout)["tools"]] == list(ACTIONS)


def test_the_inspector_calls_tools_and_sees_no_secret(inspect: Inspect) -> None:
    tool = ("--method", "tools/call", "--tool-name")
    made = inspect(*tool, "provision_disk_image_webhook", "--tool-arg", "label=pipeline")
    assert made.returncode == 0, made.stderr
    answer = json.loads(made.stdout)["structuredContent"]
    assert (answer["label"], answer["webhook_secret"]) == ("pipeline", None)
    assert answer["read_secret_once"]["command"].startswith("disk-image platform secret ")
    again = inspect(*tool, "provision_disk_image_webhook", "--tool-arg", "label=pipeline")
    assert "expected a label that no webhook of the account has yet" in again.stdout


def test_the_inspector_is_refused_without_a_token_that_is_known(inspect: Inspect) -> None:
    for token in (None, "pnu_unknown"):
        refused = inspect("--method", "tools/list", token=token)
        assert refused.returncode != 0
        # what it makes of 401
        assert json.loads(refused.stderr)["error"]["code"] == "auth_required"
