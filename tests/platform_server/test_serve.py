"""The server itself: health, unknown paths, and clients that send too much or too slowly."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

import httpx
import pytest

from platform_server.api import PREFIX
from platform_server.settings import Limits, Settings
from platform_server.state_folder import Platform
from tests.platform_server.conftest import Made
from tests.platform_server.process import process
from tests.platform_server.serving import serving, talk

pytestmark = pytest.mark.one_database


@pytest.fixture
def settings() -> Settings:
    return Settings(limits=replace(Limits(), header_seconds=2.0, body_seconds=2.0, body=1000))


@pytest.fixture
def address(platform: Platform) -> Iterator[tuple[str, int]]:
    with serving(platform) as found:
        yield found


def _get(address: tuple[str, int], path: str) -> httpx.Response:
    return httpx.get(f"http://{address[0]}:{address[1]}{path}", trust_env=False, timeout=60)


def test_healthz_answers(address: tuple[str, int]) -> None:
    answer = _get(address, "/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert "server" not in answer.headers


def test_an_unknown_path_is_an_error_in_the_common_form(address: tuple[str, int]) -> None:
    answer = _get(address, "/api/v1/system/nothing")
    assert answer.status_code == 404
    assert answer.json()["success"] is False
    assert "/api/v1/system/nothing" in answer.json()["error"]


def test_a_405_names_every_method_of_the_path(address: tuple[str, int]) -> None:
    answer = httpx.put(
        f"http://{address[0]}:{address[1]}/api/v1/system/node_platforms/1",
        json={},
        trust_env=False,
        timeout=60,
    )
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, PATCH, DELETE")


def test_slow_loris_headers_are_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n")
        connection.settimeout(0.1)
        for _ in range(100):
            try:
                connection.sendall(b"X-A: b\r\n")
                assert connection.recv(100) == b""
                return
            except TimeoutError:
                continue
            except OSError:
                return
    pytest.fail("the connection stayed open for 10 s")


def test_a_silent_connection_is_closed(address: tuple[str, int]) -> None:
    assert talk(address, b"") == b""


def test_slow_loris_second_request_is_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        rest = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                rest += part
    assert b"200" not in rest


def test_slow_loris_body_is_cut_off(address: tuple[str, int]) -> None:
    path = b"/api/v1/system/webhooks/disk_image/built/00000000-0000-7000-8000-000000000000"
    request = b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{"
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(request)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"application/json" in answer


def test_a_body_that_is_too_large_is_refused(address: tuple[str, int]) -> None:
    for headers in (b"Content-Length: 2000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n"):
        head = (
            b"POST /api/v1/system/node_platforms HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        )
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(head + headers + b"a" * 2000)
            assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_megabyte_of_headers_is_refused(address: tuple[str, int]) -> None:
    with suppress(ConnectionError):
        answer = talk(address, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n")
        assert b" 200 " not in answer
    assert _get(address, "/healthz").status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /healthz\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"\x00" * 1000,
    ],
    ids=["TLS", "no version", "negative length", "two lengths", "zeros"],
)
def test_what_is_no_http_gets_400(address: tuple[str, int], content: bytes) -> None:
    assert talk(address, content)[:12] in (b"HTTP/1.1 400", b"")
    assert _get(address, "/healthz").status_code == 200


def test_a_client_that_goes_away_is_no_fault_of_the_platform(
    made: Made, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    paths = [f"{PREFIX}/webhooks/disk_image/built/{UUID(int=1)}", f"{PREFIX}/actions/recent_events", "/mcp"]
    with process(made) as served:
        for path in paths:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {made.admin_token}\r\n"
                "Accept: application/json\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
            )
            with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
                connection.sendall(head.encode())
        wait_for(lambda: len(served.lines("request", status=499)) == len(paths))
        assert [line for line in served.lines() if line["level"] == "error"] == []
