"""Where requests come in, and how many: socket files, systemd's sockets, proxies, limits."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.errors import DiskImageError
from platform_server.errors import Invalid, StateError
from platform_server.listening import handed_over, listen, listen_at
from platform_server.notify import READY, notify, watchdog_seconds
from platform_server.proxies import Proxies, check_proxy, sender_of
from platform_server.settings import Limits, limits_of, public_url_of, workers_of
from tests.platform_server.conftest import DATABASES
from tests.platform_server.made import Made
from tests.platform_server.process import ROOT, Process, process
from tests.ports import free_port

pytestmark = pytest.mark.one_database

WaitFor = Callable[[Callable[[], bool]], None]


def _over(path: Path) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=os.fspath(path)), base_url="http://platform")


def test_a_socket_file_for_a_proxy_on_this_machine(made: Made, tmp_path: Path, wait_for: WaitFor) -> None:
    path = tmp_path / "platform.sock"
    with process(made, "--socket", path) as served, _over(path) as client:
        assert served.url == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        # what the proxy says of its client, and not what the client says of itself
        headers = {"x-forwarded-for": "198.51.100.9, 203.0.113.7", "forwarded": "for=192.0.2.1"}
        assert client.get("/api/v1/system/events", headers=headers).status_code == 401
        wait_for(lambda: bool(served.lines("request", status=401)))
        (request,) = served.lines("request", status=401)
        assert request["address"] == "203.0.113.7"
        assert served.stop() == 0
    assert not path.exists()


def test_a_socket_that_a_killed_process_left_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "platform.sock"
    listen_at(path).close()
    with listen_at(path), pytest.raises(StateError, match="already in use"):
        listen_at(path)
    other = tmp_path / "precious"
    other.write_text("kept")
    with pytest.raises(StateError, match="already in use"):
        listen_at(other)
    assert other.read_text() == "kept"


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), (".example", 0), ("a" * 64 + ".x", 0)])
def test_an_address_that_cannot_be_is_refused(host: str, port: int) -> None:
    with pytest.raises(StateError, match="can't listen on"):
        listen(host, port)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://platform.example/", "https://platform.example"),
        ("HTTPS://Platform.Example:8443/Images/", "https://platform.example:8443/Images"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_public_url_is_as_clients_send_it(text: str, url: str) -> None:
    assert public_url_of(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "platform.example",
        "ftp://platform.example",
        "https://",
        "http://[::1",
        "https://admin:secret@platform.example",
        "https://platform.example/secret@other.example",
        "https://platform.example?token=secret",
        "https://platform.example#secret",
        "https://platform.example/a secret",
        "https://platform.example\n",
    ],
)
def test_what_is_no_public_url_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(Invalid, match="--public-url: expected") as raised:
        public_url_of(text)
    assert "secret" not in f"{raised.value.what} {raised.value.hint}"


def test_a_senders_own_words_about_its_address_count_for_nothing(made: Made, wait_for: WaitFor) -> None:
    with process(made) as served, httpx.Client(base_url=served.url, trust_env=False, timeout=60) as client:
        spoofed = {
            "x-forwarded-for": "203.0.113.7",
            "forwarded": "for=203.0.113.7",
            "x-real-ip": "203.0.113.7",
        }
        client.get("/api/v1/system/events", headers=spoofed)
        wait_for(lambda: bool(served.lines("request")))
        assert [line["address"] for line in served.lines("request")] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("10.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["192.0.2.1, 203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["192.0.2.1", "203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["192.0.2.1, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        ("10.0.0.1", ["unix, 203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["2001:db8::7"], "2001:db8::7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("::ffff:198.51.100.1", ["203.0.113.7"], "198.51.100.1"),
        ("198.51.100.1", ["203.0.113.7"], "198.51.100.1"),
        (None, ["192.0.2.1, 203.0.113.7"], "203.0.113.7"),
        (None, [], "unix"),
    ],
)
def test_x_forwarded_for_is_believed_of_a_proxy_and_from_its_end(
    peer: str | None, forwarded: list[str], found: str
) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    scope = {
        "type": "http",
        "scheme": "http",
        "client": peer and (peer, 4711),
        "headers": [(b"x-forwarded-for", each.encode()) for each in forwarded],
    }
    anyio.run(Proxies(["10.0.0.0/24"]).before(app), scope, None, None)  # type: ignore[arg-type]
    assert seen == [found]


@pytest.mark.parametrize("text", ["*", "", "localhost", "10.0.0.1/24", "10.0.0.1,10.0.0.2", "unix"])
def test_what_is_no_proxys_address_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="--proxy: expected an address, or a network"):
        check_proxy(text)


STARTS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.fixture
def activated(made: Made) -> Iterator[tuple[socket.socket, Callable[[], subprocess.Popen[str]]]]:
    """A socket as systemd opens it, and what starts a server that gets it."""
    started = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def start() -> subprocess.Popen[str]:
            serve = ["-m", "pipelines", "platform", "serve", "--state", str(made.folder), "--json"]
            database = {"DISK_IMAGE_PLATFORM_DATABASE": made.database} if made.database else {}
            popen = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    STARTS,
                    str(listening.fileno()),
                    *serve,
                    "--limit",
                    "drain_seconds=0",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                pass_fds=[listening.fileno()],
                env={**os.environ, **database},
            )
            started.append(popen)
            return popen

        yield listening, start
        for popen in started:
            popen.kill()
            popen.communicate()


def test_a_restart_behind_systemds_socket_refuses_nobody(
    activated: tuple[socket.socket, Callable[[], subprocess.Popen[str]]],
) -> None:
    listening, start = activated
    first = start()
    assert first.stdout is not None
    port = listening.getsockname()[1]
    assert f'"http://127.0.0.1:{port}"' in first.stdout.readline()
    url = f"http://127.0.0.1:{port}/healthz"
    assert httpx.get(url, trust_env=False, timeout=60).status_code == 200
    first.terminate()
    assert first.wait(60) == 0
    with socket.create_connection(("127.0.0.1", port), 60) as waiting:
        # nobody serves now, and the connection stands
        waiting.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        start()
        assert waiting.recv(100).startswith(b"HTTP/1.1 200")


def test_sockets_are_taken_once_and_only_those_that_are_handed_to_this_process() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "platform"}
    assert handed_over(environment) == ()
    assert environment == {}
    assert handed_over({}) == ()


def test_readiness_the_watchdog_and_the_end_are_told_to_the_service_manager(
    made: Made, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(tmp_path / "notify"))
        manager.settimeout(60)
        environment = {"NOTIFY_SOCKET": os.fspath(tmp_path / "notify"), "WATCHDOG_USEC": "900000"}
        with process(made, environment=environment) as served:
            assert manager.recv(100) == b"READY=1"
            assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            assert served.stop() == 0
            told = b"WATCHDOG=1"
            while told == b"WATCHDOG=1":
                told = manager.recv(100)
            assert told == b"STOPPING=1"


def test_notify_without_a_service_manager_does_nothing() -> None:
    notify(READY, {})
    notify(READY, {"NOTIFY_SOCKET": "/nonexistent/notify"})
    notify(READY, {"NOTIFY_SOCKET": "@nobody-listens-here"})
    notify(READY, {"NOTIFY_SOCKET": "vsock:2:1234"})


def test_the_watchdog_is_fed_where_it_is_this_processes() -> None:
    assert watchdog_seconds({}) is None
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000"}) == 30.0
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 30.0
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    assert watchdog_seconds({"WATCHDOG_USEC": "often"}) is None


def test_metrics_at_an_address_of_their_own_need_no_token(made: Made) -> None:
    port = free_port()
    with process(made, "--metrics", str(port)) as served:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60)
        names = {each.name for each in text_string_to_metric_families(answer.text)}
        assert "disk_image_queue_jobs" in names
        assert httpx.get(f"{served.url}/metrics", trust_env=False, timeout=60).status_code == 401


@pytest.mark.parametrize("made", DATABASES, indirect=True)
def test_processes_of_one_database_say_the_same_of_it_and_each_its_own_of_itself(
    made: Made, wait_for: WaitFor
) -> None:
    ports = free_port(), free_port()

    def values(port: int, prefix: str) -> list[str]:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60).text
        return [line for line in text.splitlines() if line.startswith(prefix)]

    with process(made, "--metrics", str(ports[0])) as one, process(made, "--metrics", str(ports[1])):
        for gauge in ("disk_image_publications{", "disk_image_queue_jobs{", "disk_image_ready{"):
            assert values(ports[0], gauge) == values(ports[1], gauge) != []
        asked = 'disk_image_http_requests_total{method="GET",route="/api/v1/system/events",status="401"}'
        httpx.get(f"{one.url}/api/v1/system/events", trust_env=False, timeout=60)
        wait_for(lambda: values(ports[0], asked) == [f"{asked} 1.0"])
        assert values(ports[1], asked) == []


def test_limits_are_set_by_name() -> None:
    assert limits_of([]) == Limits()
    chosen = limits_of(["connections=20", "header_seconds=0.5", "drain_seconds=0"])
    assert (chosen.connections, chosen.header_seconds, chosen.drain_seconds) == (20, 0.5, 0.0)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["speed=1"], "--limit: expected one of webhook_body, body, .*, found 'speed'"),
        (["connections"], "--limit connections: expected a whole number from 1 to 100000, found ''"),
        (["connections=0"], "--limit connections: expected a whole number from 1 to 100000, found '0'"),
        (["connections=1.5"], "--limit connections: expected a whole number from 1 to 100000, found '1.5'"),
        (["connections=1e3"], "--limit connections: expected a whole number from 1 to 100000, found '1e3'"),
        (["refusals=nan"], "--limit refusals: expected a number from 0.001 to 100000, found 'nan'"),
        (["body_seconds=0"], "--limit body_seconds: expected a number from 0.1 to 600, found '0'"),
        (["drain_seconds=-0.1"], "--limit drain_seconds: expected a number from 0 to 3600, found '-0.1'"),
        (["body=17179869184"], "--limit body: expected a whole number from 1024 to 16777216, found"),
        (["webhook_body=300000"], "--limit webhook_body: expected at most body, 262144, found 300000"),
        (["body=2048"], "--limit webhook_body: expected at most body, 2048, found 65536"),
    ],
)
def test_what_is_no_limit_is_refused(words: list[str], error: str) -> None:
    with pytest.raises(DiskImageError, match=error):
        limits_of(words)


@pytest.mark.parametrize("each", fields(Limits), ids=lambda each: each.name)
def test_every_limit_has_a_range_that_has_its_default_in_it(each: Field[object]) -> None:
    least, most = each.metadata["least"], each.metadata["most"]
    assert least < each.default < most
    room = [] if each.name == "webhook_body" else ["webhook_body=1024"]
    for bound in (least, most):
        word = f"{each.name}={bound}"
        if each.name == "webhook_body":
            assert limits_of([word, "body=16777216"]).webhook_body == bound
        else:
            assert getattr(limits_of([word, *room]), each.name) == bound
    for absurd in ("0" if least else "-1", "-1", "nan", "inf", "-inf", "1e30", "9" * 5000, "", " ", "ten"):
        with pytest.raises(Invalid, match=f"--limit {each.name}: expected a (whole )?number from "):
            limits_of([f"{each.name}={absurd}"])


def test_workers_are_as_many_as_a_process_can_feed() -> None:
    assert (workers_of(0), workers_of(64)) == (0, 64)
    for count in (-1, 65, 10**9):
        with pytest.raises(Invalid, match=f"--workers: expected a whole number from 0 to 64, found {count}"):
            workers_of(count)


def test_one_address_has_so_many_connections_and_no_more(made: Made) -> None:
    with process(made, "--limit", "address_connections=3") as served:
        held = [socket.create_connection(("127.0.0.1", served.port), 60) for _ in range(3)]
        assert all(_answers(each) for each in held)
        with socket.create_connection(("127.0.0.1", served.port), 60) as one_more:
            assert one_more.recv(100) == b""
        held.pop().close()
        assert _soon(served)
        for each in held:
            each.close()


def test_more_connections_than_there_may_be_are_told_to_come_later(made: Made) -> None:
    with process(made, "--limit", "connections=3") as served:
        held = [socket.create_connection(("127.0.0.1", served.port), 60) for _ in range(3)]
        assert all(_answers(each) for each in held)
        with socket.create_connection(("127.0.0.1", served.port), 60) as one_more:
            one_more.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = b""
            while part := one_more.recv(1000):
                answer += part
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in head.lower()
            assert json.loads(body)["error"] == "too many connections at once"
        for each in held:
            each.close()


def test_an_upgrade_that_is_offered_is_passed_over_without_a_word(made: Made) -> None:
    with (
        process(made) as served,
        socket.create_connection(("127.0.0.1", served.port), 60) as connection,
    ):
        for protocol in (b"h2c", b"websocket"):
            assert _answers(connection, b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n")
        assert served.lines(level="warning", logger="uvicorn.error") == []


def test_a_connection_that_asks_nothing_more_is_closed(made: Made) -> None:
    with (
        process(made, "--limit", "keep_alive_seconds=1") as served,
        socket.create_connection(("127.0.0.1", served.port), 60) as connection,
    ):
        assert _answers(connection)
        assert connection.recv(100) == b""


def test_as_many_files_may_be_open_as_connections_need(made: Made) -> None:
    with process(made, "--limit", "connections=1500") as served:
        soft, _ = resource.prlimit(served.popen.pid, resource.RLIMIT_NOFILE)
    assert soft >= 2000


def test_one_host_has_all_addresses_of_its_ipv6_network() -> None:
    assert sender_of("2001:db8::1") == sender_of("2001:db8::ffff:ffff:ffff:ffff")
    assert sender_of("2001:db8::1") != sender_of("2001:db8:0:1::1")
    assert sender_of("203.0.113.7") == "203.0.113.7"
    assert sender_of("::ffff:203.0.113.7") == "203.0.113.7"
    assert sender_of("::ffff:203.0.113.7") != sender_of("::ffff:203.0.113.8")
    assert sender_of("unix") == "unix"
    assert sender_of("no:address") == "no:address"


def _answers(connection: socket.socket, headers: bytes = b"") -> bool:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n")
    answer = connection.recv(1000)
    while answer and not answer.endswith(b"}"):
        answer += connection.recv(1000)
    return answer.startswith(b"HTTP/1.1 200")


def _soon(served: Process) -> bool:
    """Whether another connection is answered once the server has seen that one was closed."""
    for _ in range(200):
        try:
            with socket.create_connection(("127.0.0.1", served.port), 60) as another:
                if _answers(another):
                    return True
        except OSError:
            continue
    return False


def test_a_failure_to_start_is_a_line_of_the_log_too(made: Made, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "platform", "serve", "--state", str(tmp_path / "none")]
    found = subprocess.run(
        [*command, "--port", "0", "--log-format", "json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (found.returncode, found.stdout) == (1, "")
    line = found.stderr.splitlines()[-1]
    assert '"level": "critical"' in line
    assert "no platform" in line
