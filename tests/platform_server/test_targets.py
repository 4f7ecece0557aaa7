"""Targets in absolute form, byte for byte as a proxy's client sends them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from platform_server.api import PREFIX
from platform_server.state_folder import Platform
from tests.platform_server.api import Api, Pipeline, plain
from tests.platform_server.made import Made
from tests.platform_server.serving import serving, talk

Address = tuple[str, int]


@pytest.fixture
def address(platform: Platform) -> Iterator[Address]:
    with serving(platform, public=True) as found:
        yield found


def _ask(
    address: Address, target: str, method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    """Status and body of one request."""
    lines = [
        f"{method} {target} HTTP/1.1",
        "Host: ignored.example",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    head, _, content = talk(address, "\r\n".join([*lines, "", ""]).encode() + body).partition(b"\r\n\r\n")
    return int(head.split()[1]), content


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", f"{PREFIX}/openapi.json", 200),
        ("GET", f"{PREFIX}/events?limit=5", 401),
        ("POST", f"{PREFIX}/actions/recent_events", 401),
        ("PUT", f"{PREFIX}/uploads/00000000-0000-7000-8000-000000000000?expires=1&signature=a", 403),
        ("POST", f"{PREFIX}/webhooks/disk_image/built/00000000-0000-7000-8000-000000000000", 404),
        ("POST", "/mcp", 401),
        ("GET", "/no/such%20path", 404),
        ("DELETE", "/healthz", 405),
    ],
)
def test_either_form_is_answered_the_same(address: Address, method: str, path: str, status: int) -> None:
    here = f"http://{address[0]}:{address[1]}"
    told = _ask(address, path, method)
    assert told[0] == status
    for origin in (here, "http://elsewhere.example", "https://elsewhere.example:8443", "HTTP://[::1]"):
        assert _ask(address, origin + path, method) == told


def test_a_delivery_in_absolute_form_is_taken(address: Address, api: Api, pipeline: Pipeline) -> None:
    body = pipeline.body()
    target = f"http://elsewhere.example{PREFIX}/webhooks/disk_image/built/{pipeline.webhook_id}"
    status, answer = _ask(address, target, "POST", body, **plain(pipeline.secret, body))
    assert (status, json.loads(answer)["status"]) == (202, "queued")


def test_nobody_else_is_asked(address: Address) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0)
        port = other.getsockname()[1]
        assert _ask(address, f"http://127.0.0.1:{port}/healthz") == (200, b'{"status":"ok"}')
        with pytest.raises(BlockingIOError):
            other.accept()


def test_the_targets_host_is_the_one_that_counts(address: Address, made: Made) -> None:
    """As Host does: MCP answers under the platform's own name alone."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
    headers = {
        "Authorization": f"Bearer {made.admin_token}",
        "Content_Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    own = f"http://{address[0]}:{address[1]}/mcp"
    assert _ask(address, own, "POST", body, **headers)[0] == 200
    assert _ask(address, "http://elsewhere.example/mcp", "POST", body, **headers)[0] == 421


@pytest.mark.parametrize(
    "target", ["http://", "http:///healthz", "http://user@host/healthz", "ftp://a/healthz"]
)
def test_what_is_no_such_target_is_not_found(address: Address, target: str) -> None:
    assert _ask(address, target)[0] == 404


def test_no_tunnel_is_made(address: Address) -> None:
    assert _ask(address, "127.0.0.1:22", "CONNECT")[0] in (400, 404, 405)
