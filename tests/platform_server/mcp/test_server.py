"""What several server processes answer together, and what becomes of errors that nobody foresaw."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import anyio
import httpx
import pytest

from platform_server import action_table, logs
from platform_server.errors import Unavailable
from platform_server.logs import LogFormat
from platform_server.mcp import server
from tests.platform_server.api import Api
from tests.platform_server.made import Made
from tests.platform_server.mcp.conftest import Served
from tests.platform_server.mcp.connecting import call, over_http, refusal
from tests.platform_server.serving import serving


def test_any_process_answers_any_request(served: Served, made: Made) -> None:
    second = made.open(replace(served.platform.settings), served.platform.clock)
    with serving(second) as (host, port):
        urls = [served.url, f"http://{host}:{port}"]

        async def session() -> list[dict[str, Any]]:
            async with over_http(urls[0], served.token) as one, over_http(urls[1], served.token) as other:
                answers = [
                    await call(client, "provision_disk_image_webhook", label=label)
                    for label, client in (("first", one), ("second", other), ("third", one))
                ]
                assert "a label that no webhook" in await refusal(
                    other, "provision_disk_image_webhook", label="first"
                )
                for client in (one, other):
                    assert (await call(client, "system_list_disk_image_webhooks"))["count"] == 3
                return answers

        for made_by_one, answer in enumerate(anyio.run(session)):
            with httpx.Client(base_url=urls[made_by_one % 2 - 1], trust_env=False, timeout=60) as http:
                rest = Api(http, served.token)
                path = f"/secrets/{answer['read_secret_once']['secret_id']}"
                assert rest.post(path)["secret"].startswith("pndis_")
            with httpx.Client(base_url=urls[made_by_one % 2], trust_env=False, timeout=60) as http:
                Api(http, served.token).error(409, "POST", path)
    second.database.close()


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("canary: /var/lib/secret"), "the platform failed to answer"),
        (Unavailable("the database does not answer", "send it again later"), "the database does not answer"),
    ],
)
def test_an_error_that_nobody_foresaw_is_logged_and_shows_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    lines = io.StringIO()
    logs.start_log(LogFormat.JSON, stream=lines)

    async def fails(*_: Any) -> Any:
        raise error

    broken = replace(action_table.ACTIONS["recent_events"], run=fails)
    monkeypatch.setattr(server, "ACTIONS", {**action_table.ACTIONS, "recent_events": broken})

    async def session() -> str:
        async with over_http(served.url, served.token) as client:
            text = await refusal(client, "recent_events")
            assert (await call(client, "system_list_ci_workers"))["count"] == 0
            return text

    text = anyio.run(session)
    assert text.startswith(f"{says}\n")
    assert "canary" not in text
    assert ("canary" in lines.getvalue()) is isinstance(error, RuntimeError)
    told = [line for line in map(json.loads, lines.getvalue().splitlines()) if line["message"] == "tool"]
    assert [(line["tool"], line["user"], line["status"]) for line in told] == [
        ("recent_events", "admin", 500 if isinstance(error, RuntimeError) else 503),
        ("system_list_ci_workers", "admin", 200),
    ]
    assert all(line["request_id"] for line in told)


def test_a_label_that_is_taken_leaves_no_secret_behind(served: Served) -> None:
    label = uuid4().hex

    async def session() -> tuple[dict[str, Any], str]:
        async with over_http(served.url, served.token) as client:
            return (
                await call(client, "provision_disk_image_webhook", label=label),
                await refusal(client, "provision_disk_image_webhook", label=label),
            )

    made, text = anyio.run(session)
    assert made["webhook_secret"] is None
    assert f"a label that no webhook of the account has yet, found {label!r}" in text
