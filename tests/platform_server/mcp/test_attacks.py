"""Who is not let in over HTTP, what is not taken, and what becomes of clients that misbehave."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
from mcp.shared.exceptions import MCPError

from platform_server.accounts import revoke_tokens
from platform_server.action_table import ACTIONS
from platform_server.permissions import Permission
from platform_server.state_folder import Platform
from tests.platform_server.api import Api
from tests.platform_server.made import Made
from tests.platform_server.mcp.conftest import Served
from tests.platform_server.mcp.connecting import call, over_http, refusal
from tests.platform_server.published import Publish
from tests.platform_server.serving import serving, talk

pytestmark = pytest.mark.one_database

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
NOBODY = "00000000-0000-7000-8000-000000000000"


def send(served: Served, content: Any, token: str | None = None, **headers: str) -> httpx.Response:
    """A message as it is, in the older protocol, where a request needs nothing around it."""
    return httpx.post(
        f"{served.url}/mcp",
        content=content if isinstance(content, bytes) else json.dumps(content).encode(),
        headers={
            "authorization": f"Bearer {token or served.token}",
            "accept": "application/json",
            "content-type": "application/json",
        }
        | headers,
        trust_env=False,
        timeout=60,
    )


def still_serves(served: Served) -> bool:
    return len(send(served, LIST).json()["result"]["tools"]) > 9


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer nonsense", "Bearer pnu_unknown", "Bearer swt_unknown", "Basic cG51"],
)
def test_without_a_token_nothing_is_answered(served: Served, authorization: str) -> None:
    answer = send(served, LIST, authorization=authorization)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"] == "no valid token"


def test_a_token_in_the_url_is_none(served: Served) -> None:
    answer = httpx.post(
        f"{served.url}/mcp?access_token={served.token}", json=LIST, trust_env=False, timeout=60
    )
    assert answer.status_code == 401


def test_a_workers_token_is_for_pipelines(served: Served, rest: Api) -> None:
    token = rest.post("/ci_workers", {"name": "runner"})["token_plaintext"]
    answer = send(served, LIST, token)
    assert answer.status_code == 403
    assert "is a worker" in answer.json()["error"]
    assert send(served, LIST, authorization="", **{"x-worker-token": token}).status_code == 401


def test_a_revoked_token_ends_at_once(served: Served) -> None:
    token = served.token_of("leaver", "*")

    async def session() -> None:
        async with over_http(served.url, token, mode="legacy") as client:
            await call(client, "recent_events")
            served.platform.database.write_now(
                lambda on: revoke_tokens(on, "default", "leaver", served.platform.clock())
            )
            with pytest.raises(MCPError):
                await client.call_tool("recent_events", {})

    anyio.run(session)
    assert send(served, LIST, token).status_code == 401


def test_a_permission_is_asked_for_with_each_call(served: Served, rest: Api) -> None:
    token = served.token_of("reader", Permission.NODES_READ)

    async def session() -> dict[str, str]:
        async with over_http(served.url, token) as client:
            mine = {tool.name for tool in (await client.list_tools()).tools}
            assert mine
            return {name: await refusal(client, name) for name in ACTIONS.keys() - mine}

    for name, text in anyio.run(session).items():
        assert text.startswith("reader lacks the permission system."), name


def test_ids_of_another_account_are_not_there(
    served: Served, rest: Api, publish: Publish, platform_id: str
) -> None:
    publication_id = publish()
    worker_id = rest.post("/ci_workers", {"name": "runner"})["ci_worker"]["id"]
    token = served.token_of("admin", "*", account="other")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("system_set_default_disk_image_publication", {"publication_id": publication_id}),
        ("system_rollback_disk_image", {"node_platform_id": platform_id}),
        ("system_set_disk_image_retention", {"node_platform_id": platform_id, "retention_count": 1}),
        ("system_terminate_ci_worker", {"worker_id": worker_id}),
        ("system_terminate_ci_worker", {"id": worker_id}),
    ]

    async def session() -> list[str]:
        async with over_http(served.url, token) as client:
            for name in ("system_list_disk_image_publications", "recent_events", "system_list_ci_workers"):
                assert (await call(client, name))["count"] == 0
            return [await refusal(client, name, **arguments) for name, arguments in calls]

    assert all("not in this account" in text for text in anyio.run(session))


@pytest.mark.parametrize(
    ("name", "arguments", "field"),
    [
        ("recent_events", {"limit": 10**400}, "limit"),
        ("recent_events", {"limit": "9" * 200_000}, "limit"),
        ("recent_events", {"limit": True}, "limit"),
        ("recent_events", {"kind_prefix": ["system"]}, "kind_prefix"),
        ("recent_events", {"kind_prefix": "x" * 200_000}, "kind_prefix"),
        ("recent_events", {"account_id": NOBODY}, "account_id"),
        ("system_rollback_disk_image", {"node_platform_id": "\x1b[2J\n"}, "\\x1b"),
        ("recent_events", {"x" * 200_000: 1}, "xxx"),
        ("recent_events", {"\n\u202e": 1}, "\\n\\u202e"),
        ("system_rollback_disk_image", {"node_platform_id": "../../etc/passwd"}, "node_platform_id"),
        ("system_rollback_disk_image", {"node_platform_id": {"$ne": None}}, "node_platform_id"),
        ("system_rollback_disk_image", {}, "node_platform_id"),
        (
            "system_set_disk_image_retention",
            {"node_platform_id": NOBODY, "retention_count": 1e400},
            "retention_count",
        ),
        ("system_list_disk_image_publications", {"status": "published' OR 1=1 --"}, "status"),
        ("provision_disk_image_webhook", {"label": "\u0000"}, "label"),
        ("provision_disk_image_webhook", {"label": 5}, "label"),
        (
            "provision_disk_image_webhook",
            {"label": "a", "platform_api_base": "javascript:0"},
            "platform_api_base",
        ),
        ("system_terminate_ci_worker", {}, "worker_id"),
        ("system_terminate_ci_worker", {"worker_id": NOBODY, "id": NOBODY}, "worker_id"),
    ],
)
def test_arguments_that_are_wrong_say_what_rest_says(
    served: Served, name: str, arguments: dict[str, Any], field: str
) -> None:
    body = json.dumps(arguments).replace("Infinity", "1e400").encode()
    rest = httpx.post(
        f"{served.url}/api/v1/system/actions/{name}",
        content=body,
        headers={"authorization": f"Bearer {served.token}", "content-type": "application/json"},
        trust_env=False,
    )
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": 0}}
    answer = send(served, json.dumps(message).encode().replace(b'"arguments": 0', b'"arguments": ' + body))
    result = answer.json()["result"]
    assert result["isError"] is True
    (content,) = result["content"]
    assert content["text"] == f"{rest.json()['error']}\n{rest.json()['hint']}"
    assert field in content["text"]
    assert all(line.isprintable() for line in content["text"].split("\n"))
    assert len(content["text"]) < 500
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"null", 400),
        (b"[]", 400),
        (json.dumps([LIST, LIST]).encode(), 400),
        (b"[" * 100_000 + b"]" * 100_000, 400),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "tools/list"}', 400),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 5}', 400),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": [1]}', 400),
        (b'{"a":' * 30_000 + b"1" + b"}" * 30_000, 400),
    ],
    ids=[
        "nothing", "half", "no text", "null", "empty batch", "batch", "deep list", "old version", "method",
        "positional", "deep object",
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28", "1999-01-01"])
def test_what_is_no_message_is_refused(served: Served, content: bytes, status: int, version: str) -> None:
    answer = send(served, content, **{"mcp-protocol-version": version})
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text
    assert still_serves(served)


def test_a_request_without_an_id_is_not_carried_out(served: Served, rest: Api) -> None:
    call = {"name": "system_provision_ci_worker", "arguments": {"name": "runner"}}
    identifiers: list[Any] = [{}, [], None, 1.5]
    for identifier in identifiers:
        message = {"jsonrpc": "2.0", "id": identifier, "method": "tools/call", "params": call}
        assert send(served, message).status_code in (202, 400)
    assert rest.get("/ci_workers")["ci_workers"] == []


def test_an_unknown_tool_or_method_is_named(served: Served) -> None:
    for name in ("nothing", "system_list_ci_workers\n", "x" * 100_000, "__class__"):
        message = {**LIST, "method": "tools/call", "params": {"name": name}}
        error = send(served, message).json()["error"]
        assert error["code"] == -32602
        assert "tools/list names them" in error["message"]
        assert len(error["message"]) < 200
    assert send(served, {**LIST, "method": "resources/list"}).json()["error"]["code"] == -32601


def test_a_body_that_is_too_large_is_refused(served: Served) -> None:
    most = served.platform.settings.limits.body
    assert send(served, b" " * (most + 1)).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(most // 1000 + 2):
            yield b" " * 1000

    answer = httpx.post(
        f"{served.url}/mcp",
        content=endless(),
        headers={"authorization": f"Bearer {served.token}", "content-type": "application/json"},
        trust_env=False,
    )
    assert answer.status_code == 413
    assert still_serves(served)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "localhost.evil:8000"]
)
def test_another_name_for_this_machine_is_refused(served: Served, host: str) -> None:
    assert send(served, LIST, host=host).status_code == 421


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://"]
)
def test_pages_of_other_sites_reach_nothing(served: Served, origin: str) -> None:
    assert send(served, LIST, origin=origin).status_code == 403


def test_names_of_this_platform_are_let_in(served: Served) -> None:
    port = served.url.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "localhost"):
        assert send(served, LIST, host=host).status_code == 200
    assert send(served, LIST, origin=served.url).status_code == 200


def test_a_public_name_is_let_in_and_its_default_port(platform: Platform) -> None:
    public = replace(platform, settings=replace(platform.settings, public_url="https://platform.example"))
    with serving(public) as (host, port):
        served = Served(public, f"http://{host}:{port}", "")
        token = served.token_of("admin", "*")
        assert send(served, LIST, token, host="platform.example").status_code == 200
        origin = "https://platform.example"
        assert send(served, LIST, token, host="platform.example", origin=origin).status_code == 200
        assert (
            send(served, LIST, token, host="platform.example", origin="http://platform.example").status_code
            == 403
        )
        assert send(served, LIST, token, host="example").status_code == 421


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH"])
def test_there_is_no_stream_to_hold_open(served: Served, method: str) -> None:
    answer = httpx.request(
        method,
        f"{served.url}/mcp",
        headers={"authorization": f"Bearer {served.token}", "accept": "text/event-stream"},
        trust_env=False,
    )
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_session_that_a_client_claims_to_have_means_nothing(served: Served) -> None:
    answer = send(served, LIST, **{"mcp-session-id": "f" * 32})
    assert answer.status_code == 200
    assert "mcp-session-id" not in answer.headers


def test_a_slow_body_is_cut_off(platform: Platform, made: Made) -> None:
    limits = replace(platform.settings.limits, body_seconds=0.5)
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {made.admin_token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
    )
    with (
        serving(replace(platform, settings=replace(platform.settings, limits=limits))) as address,
        socket.create_connection(address, timeout=20) as connection,
    ):
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")


def test_a_client_that_leaves_keeps_nothing(served: Served) -> None:
    address = ("127.0.0.1", int(served.url.rpartition(":")[2]))
    body = json.dumps(LIST).encode()
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {served.token}\r\n"
        f"Accept: application/json\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for cut in (10, len(body) - 1, len(body)):
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(head.encode() + body[:cut])
    assert still_serves(served)


def test_a_request_without_headers_of_http_gets_400(served: Served) -> None:
    address = ("127.0.0.1", int(served.url.rpartition(":")[2]))
    assert talk(address, b"POST /mcp HTTP/1.1\r\n\r\n")[:12] == b"HTTP/1.1 400"


def test_an_open_connection_does_not_keep_the_server_from_stopping(platform: Platform) -> None:
    with serving(platform, public=True) as (host, port):
        served = Served(platform, f"http://{host}:{port}", "")
        token = served.token_of("admin", "*")
        connection = socket.create_connection((host, port), timeout=20)
        connection.sendall(
            f"GET /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
            "Accept: text/event-stream\r\n\r\n".encode()
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 405")
        before = threading.active_count()
    assert threading.active_count() < before
    connection.close()
