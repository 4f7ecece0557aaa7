"""Platforms as they are run: made and served by the real command, on SQLite or on a PostgreSQL server that
waits for the disk as SQLite does.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from tests.postgres_server import PostgresServer, postgres_server

ROOT = Path(__file__).parents[2]
PREFIX = "/api/v1/system"
_PROGRAM = (sys.executable, "-m", "pipelines", "platform")
# The benchmark is one sender, and sends more than one webhook may.
_LIMITS = ("deliveries=100000", "deliveries_burst=1000000", "drain_seconds=0")


class Kind(StrEnum):
    """Where a platform keeps its rows."""

    SQLITE = "SQLite"
    POSTGRES = "PostgreSQL"


@dataclass(frozen=True)
class Home:
    """A platform that was made: its folder, its administrator's token, its database's URL if that is a
    server's.
    """

    kind: Kind
    folder: Path
    token: str
    database: str | None


@dataclass(frozen=True)
class Site:
    """Where platforms are made."""

    folder: Path
    postgres: PostgresServer

    def home(self, kind: Kind, name: str) -> Home:
        """A new platform."""
        state = self.folder / f"{name}-{kind}"
        database = self.postgres.url(self.postgres.create()) if kind is Kind.POSTGRES else None
        command = [*_PROGRAM, "init", "--state", os.fspath(state), "--json"]
        made = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, cwd=ROOT, env=_environment(database)
        )
        return Home(kind, state, json.loads(made.stdout)["admin_token"], database)


@contextmanager
def site() -> Iterator[Site]:
    """A folder below TMPDIR, and a server whose data is beside it."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-platform-") as folder,
        postgres_server(durable=True) as it,
    ):
        yield Site(Path(folder), it)


@dataclass(frozen=True)
class Served:
    """A platform that answers."""

    pid: int
    port: int
    api: httpx.Client

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What an operator's request was answered with."""
        return self.api.post(path, json=body).raise_for_status().json()["data"]

    def get(self, path: str, **query: str | int) -> Any:
        """The same for reading."""
        return self.api.get(path, params=query).raise_for_status().json()["data"]


@dataclass(frozen=True)
class Hook:
    """A webhook that deliveries are sent to."""

    path: str
    secret: str

    def request(self, **fields: str) -> bytes:
        """A signed delivery, as bytes on the wire."""
        body = json.dumps(fields).encode()
        signature = hmac.new(self.secret.encode(), body, hashlib.sha256).hexdigest()
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-powernode-signature: sha256={signature}\r\n\r\n"
        )
        return head.encode() + body


@contextmanager
def serving(home: Home, *arguments: str) -> Iterator[Served]:
    """`disk-image platform serve` on a free port; its log goes to a file, as it does to a journal."""
    limits = [word for limit in _LIMITS for word in ("--limit", limit)]
    command = [*_PROGRAM, "serve", "--state", os.fspath(home.folder), "--port", "0", "--json", *limits]
    log = home.folder.with_suffix(".log")
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, "--log-format", "json", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=_environment(home.database),
        ) as process,
    ):
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            if not said:
                raise RuntimeError(f"the platform did not start: {log.read_text()}")
            url = httpx.URL(json.loads(said)["url"])
            assert url.port is not None
            headers = {"authorization": f"Bearer {home.token}"}
            with httpx.Client(
                base_url=f"{url}{PREFIX}", headers=headers, trust_env=False, timeout=60
            ) as api:
                yield Served(process.pid, url.port, api)
        finally:
            process.terminate()


def webhook(platform: Served, **policy: Any) -> Hook:
    """A webhook, and the node platform `debian` to report images of."""
    platform.post("/node_platforms", {"node_platform": {"name": "debian", **policy}})
    made = platform.post("/disk_image_webhooks", {"label": "bench"})
    return Hook(httpx.URL(made["webhook_url"]).path, made["webhook_secret"])


def delivery(hook: Hook, number: int) -> bytes:
    """One of a commit of its own, so that each is a new publication."""
    commit = hashlib.sha256(str(number).encode()).hexdigest()[:40]
    return hook.request(platform_slug="debian", oci_ref="registry.example/os/debian:13", git_sha=commit)


def _environment(database: str | None) -> dict[str, str]:
    ours = {} if database is None else {"DISK_IMAGE_PLATFORM_DATABASE": database}
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("DISK_IMAGE_")}
    return {**theirs, **ours}
