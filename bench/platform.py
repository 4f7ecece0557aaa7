"""Webhooks that the platform accepts a second, and how long each waits for its answer: the real command on
loopback with SQLite, where an answer means that the row is on the disk.

Clients keep their connections and wait for each answer; every delivery is another commit, so each is a new
publication. Nothing is verified meanwhile. The CPU time of the server is comparable on a busy machine too.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx

PREFIX = "/api/v1/system"
CLIENTS = (1, 32)
DELIVERIES = 2000
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Served:
    """A platform that is served, and its one webhook."""

    process: subprocess.Popen[str]
    port: int
    path: str
    secret: str

    def request(self, number: int) -> bytes:
        """A signed delivery of a commit of its own, as bytes on the wire."""
        commit = hashlib.sha256(str(number).encode()).hexdigest()
        fields = {"platform_slug": "debian", "oci_ref": "registry.example/os/debian:13", "git_sha": commit}
        body = json.dumps(fields).encode()
        signature = hmac.new(self.secret.encode(), body, hashlib.sha256).hexdigest()
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-powernode-signature: sha256={signature}\r\n\r\n"
        )
        return head.encode() + body

    def cpu(self) -> float:
        """Seconds of CPU that the server has used (proc(5): utime and stime)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def served(state: Path) -> Iterator[Served]:
    """`disk-image platform serve` with an empty database, on a free port."""
    program = [sys.executable, "-m", "pipelines", "platform"]
    made = subprocess.run(
        [*program, "init", "--state", state, "--json"], check=True, stdout=subprocess.PIPE
    ).stdout
    command = [*program, "serve", "--state", os.fspath(state), "--port", "0", "--workers", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            token = json.loads(made)["admin_token"]
            with httpx.Client(
                base_url=url + PREFIX, headers={"authorization": f"Bearer {token}"}, trust_env=False
            ) as client:
                client.post("/node_platforms", json={"node_platform": {"name": "debian"}}).raise_for_status()
                answer = client.post("/disk_image_webhooks", json={"label": "bench"}).raise_for_status()
            hook = answer.json()["data"]
            address = httpx.URL(hook["webhook_url"])
            assert address.port is not None
            yield Served(process, address.port, address.path, hook["webhook_secret"])
        finally:
            process.terminate()


async def deliver(platform: Served, requests: deque[bytes], clients: int) -> list[float]:
    """Send them all; the seconds that each waited. Raises RuntimeError when one is not accepted."""
    waited: list[float] = []

    async def client() -> None:
        async with await anyio.connect_tcp("127.0.0.1", platform.port) as connection:
            while requests:
                request = requests.popleft()
                started = time.monotonic()
                await connection.send(request)
                answer = await connection.receive()
                waited.append(time.monotonic() - started)
                if not answer.startswith(b"HTTP/1.1 202 "):
                    raise RuntimeError(f"not accepted: {answer.decode(errors='replace')}")
                while not answer.endswith(b"}"):
                    answer += await connection.receive()

    async with anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(client)
    return waited


def main(runs: int) -> None:
    """Each number of clients, in a platform of its own; the median of the runs."""
    print("\nwebhooks accepted by the platform (SQLite, loopback)")
    print(f"  {'clients':<10}{'a second':>12}{'p50 ms':>10}{'p99 ms':>10}{'server cpu ms each':>21}")
    for clients in CLIENTS:
        rows = [_sample(clients, DELIVERIES // (1 if clients > 1 else 4)) for _ in range(runs)]
        rate, half, most, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"  {clients:<10}{rate:>12.0f}{half:>10.1f}{most:>10.1f}{cpu:>21.2f}")
    print("  goal: 500 a second or more, p99 50 ms or less, on 2 idle cores")


def _sample(clients: int, count: int) -> tuple[float, float, float, float]:
    with tempfile.TemporaryDirectory(prefix="bench-platform-") as folder, served(Path(folder)) as platform:
        anyio.run(deliver, platform, deque(platform.request(-number) for number in range(1, 21)), clients)
        requests = deque(platform.request(number) for number in range(count))
        before, started = platform.cpu(), time.monotonic()
        waited = anyio.run(deliver, platform, requests, clients)
        seconds, used = time.monotonic() - started, platform.cpu() - before
        cuts = statistics.quantiles(waited, n=100)
        return count / seconds, cuts[49] * 1000, cuts[98] * 1000, used / count * 1000
