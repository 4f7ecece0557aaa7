"""The services' HTTP server: bounded in bytes, time and connections, and it outlives every bad client."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from supply_chain.errors import TrustError
from supply_chain.trust.embedded import server
from supply_chain.trust.embedded.answers import Answer, Refused, Request, as_json


def answer(request: Request) -> Answer:
    match request.path:
        case "/echo":
            return as_json({"method": request.method, "query": request.query, "bytes": len(request.body)})
        case "/bug":
            raise RuntimeError("the secret is 1234")
        case "/damaged":
            raise TrustError("the log is damaged", "restore it")
    raise Refused("no such path", 404)


@pytest.fixture
def url() -> Iterator[str]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(server.serving(answer)) as found,
    ):
        yield found


def raw(url: str, content: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(content)
        received = b""
        while chunk := connection.recv(4096):
            received += chunk
    return received


def alive(url: str) -> bool:
    return httpx.get(f"{url}/echo").status_code == 200


def test_requests_are_answered(url: str) -> None:
    found = httpx.post(f"{url}/echo", params={"a": "1"}, content=b"x" * server.BODY_LIMIT)
    assert found.json() == {"method": "POST", "query": {"a": "1"}, "bytes": server.BODY_LIMIT}
    assert httpx.get(f"{url}/nowhere").status_code == 404


def test_a_body_in_chunks_is_taken(url: str) -> None:
    assert httpx.post(f"{url}/echo", content=iter([b"a" * 10, b"b" * 10])).json()["bytes"] == 20


def test_it_listens_on_loopback_alone(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("stated", [True, False])
def test_a_body_over_the_limit_is_refused(url: str, stated: bool) -> None:
    content = b"x" * (server.BODY_LIMIT + 1)
    found = httpx.post(f"{url}/echo", content=content if stated else iter([content]))
    assert found.status_code == 413
    assert alive(url)


def test_a_header_over_the_limit_is_refused(url: str) -> None:
    found = raw(url, b"GET /echo HTTP/1.1\r\nHost: x\r\nA: " + b"x" * (1 << 20))
    assert found.startswith(b"HTTP/1.1 431 ")
    assert alive(url)


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused(url: str, content: bytes) -> None:
    assert raw(url, content).startswith(b"HTTP/1.1 400 ")
    assert alive(url)


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(url: str, method: str) -> None:
    assert httpx.request(method, f"{url}/echo").status_code == 405
    assert alive(url)


def test_a_target_that_is_no_path_is_refused(url: str) -> None:
    assert raw(url, b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(url, b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 40")
    assert alive(url)


def test_a_failure_inside_is_the_caller_s_own() -> None:
    async def fail() -> None:
        async with server.serving(answer):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        anyio.run(fail)


def test_it_ends_with_what_it_was_started_for() -> None:
    async def once() -> str:
        async with server.serving(answer) as url:
            return url

    with pytest.raises(httpx.ConnectError):
        httpx.get(anyio.run(once))


def test_a_client_that_goes_away_is_forgotten(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    for content in (b"", b"GET /ec", b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nxx"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(content)
    assert alive(url)


def test_a_client_that_trickles_is_cut_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PATIENCE", 0.3)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /echo HTTP/1.1\r\n")
        ended = threading.Event()

        def trickle() -> None:
            while not ended.wait(0.05):
                try:
                    connection.sendall(b"A: b\r\n")
                except OSError:
                    return

        with ThreadPoolExecutor(1) as pool:
            pool.submit(trickle)
            try:
                assert connection.recv(1) == b""
            except ConnectionResetError:
                pass
            finally:
                ended.set()


def test_many_at_once_are_all_answered(url: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda _: alive(url), range(150)))


def test_a_bug_is_a_500_that_tells_nothing(url: str, caplog: pytest.LogCaptureFixture) -> None:
    found = httpx.get(f"{url}/bug")
    assert found.status_code == 500
    assert found.json()["message"] == "internal error"
    assert "the secret is 1234" in caplog.text
    assert alive(url)


def test_a_damaged_log_is_said(url: str) -> None:
    found = httpx.get(f"{url}/damaged")
    assert (found.status_code, found.json()["message"]) == (500, "the log is damaged: restore it")
