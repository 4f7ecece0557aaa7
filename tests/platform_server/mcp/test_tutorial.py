"""The tutorial's steps through a real client, with the real commands, a registry and a trust."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import anyio
import httpx
import pytest
from mcp import Client

from tests.platform_server.api import Api, Pipeline
from tests.platform_server.images import Images
from tests.platform_server.made import Made
from tests.platform_server.mcp.connecting import COMMAND, ROOT, call, over_http, over_stdio, refusal
from tests.platform_server.process import Process, process
from tests.platform_server.verifying import POLICY

Connect = Callable[[], AbstractAsyncContextManager[Client]]
SECONDS = 60


@pytest.fixture
def running(made: Made, images: Images) -> Iterator[Process]:
    """`disk-image platform serve`, which verifies."""
    with process(made, "--trust", images.forge.trust.path) as served:
        yield served


@pytest.fixture
def stdio_log(tmp_path: Path) -> Iterator[TextIO]:
    """Where `disk-image platform mcp` logs."""
    with (tmp_path / "mcp.log").open("w") as log:
        yield log


@pytest.fixture(params=["http", "http, older protocol", "stdio", "stdio, older protocol"])
def connect(request: pytest.FixtureRequest, running: Process, made: Made) -> Connect:
    """Each way to connect."""
    log = request.getfixturevalue("stdio_log")
    mode = "legacy" if "older" in request.param else "auto"

    @asynccontextmanager
    async def connected() -> AsyncIterator[Client]:
        if request.param.startswith("http"):
            async with over_http(running.url, made.admin_token, mode=mode) as client:
                yield client
        else:
            async with over_stdio(made, "--public-url", running.url, errors=log, mode=mode) as client:
                yield client

    return connected


def read_secret(answer: dict[str, Any], token: str) -> str:
    """What the operator reads on a terminal."""
    words = shlex.split(answer["read_secret_once"]["command"])
    return subprocess.run(
        [*COMMAND, *words[2:]],
        cwd=ROOT,
        env={**os.environ, "DISK_IMAGE_PLATFORM_TOKEN": token},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()


async def published(client: Client, platform_id: str, count: int) -> list[dict[str, Any]]:
    """The platform's publications, the newest first, once so many are published."""
    with anyio.fail_after(SECONDS):
        while True:
            answer = await call(client, "system_list_disk_image_publications", node_platform_id=platform_id)
            rows: list[dict[str, Any]] = answer["publications"]
            assert all(row["status"] not in ("failed", "retired") for row in rows), rows
            if [row["status"] for row in rows] == ["published"] * count:
                return rows
            await anyio.sleep(0.1)


def test_the_tutorials_steps(connect: Connect, running: Process, made: Made, images: Images) -> None:
    token = made.admin_token
    pushed = [images.push(name, name, commit=f"{number:040x}") for number, name in enumerate("abc")]
    with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as http:
        platform = {"name": "debian", "trusted_registries": [images.server.host], **POLICY}
        platform_id = Api(http, token).post("/node_platforms", {"node_platform": platform})["id"]
        anyio.run(_steps, connect, http, token, images, platform_id)
    assert not running.lines(level="error")
    assert len({each.image.digest for each in pushed}) == 3


async def _steps(connect: Connect, http: httpx.Client, token: str, images: Images, platform_id: str) -> None:
    async with connect() as client:
        # a webhook, its secret, and a CI worker
        made = await call(
            client, "provision_disk_image_webhook", label="debian", platform_api_base=str(http.base_url)
        )
        assert made["webhook_secret"] is None
        secret = await anyio.to_thread.run_sync(read_secret, made, token)
        assert made["webhook_url"].startswith(str(http.base_url).rstrip("/"))
        (webhook,) = (await call(client, "system_list_disk_image_webhooks"))["webhooks"]
        assert (webhook["id"], webhook["secret_preview"]) == (made["webhook_id"], secret[:8])
        worker = (await call(client, "system_provision_ci_worker", name="runner"))["ci_worker"]
        (listed,) = (await call(client, "system_list_ci_workers"))["workers"]
        assert (listed["id"], listed["status"]) == (worker["id"], "active")

        # the pipeline reports three images, which are verified and published
        pipeline = Pipeline(http, lambda: datetime.now(UTC), made["webhook_id"], secret)
        for count, name in enumerate("abc", 1):
            deliver = pipeline.plain if count % 2 else pipeline.standard
            answer = await anyio.to_thread.run_sync(lambda: deliver(oci_ref=images.ref(name)))  # noqa: B023
            assert answer.status_code == 202, answer.text
            rows = await published(client, platform_id, count)
        assert all(row["cosign_verified"] for row in rows)
        third, second, first = (row["id"] for row in rows)
        assert [row["id"] for row in rows if row["is_default"]] == [first]

        # which one new nodes boot, and back
        for chosen in (second, third):
            default = await call(client, "system_set_default_disk_image_publication", publication_id=chosen)
            assert (default["set_default"], default["publication_id"]) == (True, chosen)
        back = await call(client, "system_rollback_disk_image", node_platform_id=platform_id)
        assert (back["activated_publication_id"], back["prior_publication_id"]) == (second, third)

        # how many are kept: the third was retired by the rollback, the first is surplus
        kept = await call(
            client, "system_set_disk_image_retention", node_platform_id=platform_id, retention_count=1
        )
        assert (kept["updated"], kept["disk_image_retention_count"]) == (True, 1)
        text = await refusal(
            client, "system_set_disk_image_retention", node_platform_id=platform_id, retention_count=0
        )
        assert "must be ≥1" in text
        status = {
            row["id"]: row["status"]
            for row in (await call(client, "system_list_disk_image_publications"))["publications"]
        }
        assert status == {first: "retired", second: "published", third: "retired"}

        # the worker's end, and what happened
        ended = await call(client, "system_terminate_ci_worker", id=worker["id"])
        assert (ended["revoked"], ended["worker_id"]) == (True, worker["id"])
        events = (await call(client, "recent_events", kind_prefix="system.disk_image_", limit=50))["events"]
        kinds = [event["kind"].removeprefix("system.disk_image_") for event in reversed(events)]
        assert [kind for kind in kinds if kind == "published"] == ["published"] * 3
        assert [kind for kind in kinds if kind != "published"] == [
            "default_set",
            "default_set",
            "rolled_back",
            "retention_swept",
        ]
        (newest,) = (await call(client, "recent_events", limit=1))["events"]
        assert newest["payload"]["publication_id"] == first
