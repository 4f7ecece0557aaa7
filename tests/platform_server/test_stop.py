"""How the real process ends: nothing that was accepted is lost, nobody is cut off, and it ends in time."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import httpx
import pytest

from platform_server.states import Status
from platform_server.tables import Job, Publication
from tests.platform_server.api import Api, Pipeline
from tests.platform_server.conftest import Made
from tests.platform_server.process import Process, process
from tests.platform_server.verifying import POLICY
from tests.supply_chain.verify.forge import Forge


def _now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def served(made: Made, forge: Forge) -> Iterator[Process]:
    with process(made, "--trust", forge.trust.path, "--limit", "drain_seconds=2") as running:
        yield running


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """What takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        yield listening


def _request(path: str, length: int, **headers: str) -> bytes:
    lines = [f"{path} HTTP/1.1", "Host: a", f"Content-Length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def _answer(connection: socket.socket) -> tuple[int, bytes]:
    content = b""
    while part := connection.recv(65536):
        content += part
    return int(content.split(b" ", 2)[1]), content.partition(b"\r\n\r\n")[2]


def test_sigterm_answers_a_request_and_an_upload_and_releases_a_verification(
    served: Process, made: Made, silent: socket.socket, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    with httpx.Client(base_url=served.url, trust_env=False, timeout=60) as client:
        api = Api(client, made.admin_token)
        registry = f"127.0.0.1:{silent.getsockname()[1]}"
        fields = {"name": "debian", "trusted_registries": [registry], **POLICY}
        api.post("/node_platforms", {"node_platform": fields})
        hook = api.post("/disk_image_webhooks", {"label": "pipeline"})
        content = b"an archive" * 100
        worker = api.post("/ci_workers", {"name": "builder"})
        sha256 = hashlib.sha256(content).hexdigest()
        offer = {
            "platform_name": "debian",
            "sha256": sha256,
            "size_bytes": len(content),
            "git_sha": "a" * 40,
        }
        uploader = api.with_token(worker["token_plaintext"])
        begun = uploader.post("/worker_api/disk_image_publications/initiate", offer)

        # a registry that does not answer: the verification is under way when the signal comes
        pipeline = Pipeline(client, _now, hook["webhook_id"], hook["webhook_secret"])
        reported = pipeline.standard(oci_ref=f"{registry}/os/debian:13")
        publication_id = UUID(reported.json()["publication_id"])
        asking = silent.accept()[0]

        place = httpx.URL(begun["signed_upload_url"]).raw_path.decode()
        body = json.dumps({"node_platform": {"name": "late"}}).encode()
        create = "POST /api/v1/system/node_platforms"
        token = {"Authorization": f"Bearer {made.admin_token}", "Content_Type": "application/json"}
        with (
            socket.create_connection(("127.0.0.1", served.port), 60) as request,
            socket.create_connection(("127.0.0.1", served.port), 60) as upload,
        ):
            request.sendall(_request(create, len(body), **token) + body[:5])
            upload.sendall(_request(f"PUT {place}", len(content)) + content[:500])
            wait_for(lambda: bool(list((made.folder / "uploads").glob("*.part"))))
            served.signal(signal.SIGTERM)
            wait_for(lambda: client.get("/readyz").status_code == 503)
            assert client.get("/readyz").json()["checks"]["stopping"] == "told to stop"
            # whoever comes while the proxy has not noticed is answered
            assert api.get("/node_platforms")["node_platforms"]
            wait_for(lambda: _refuses(served.port))
            request.sendall(body[5:])
            assert _answer(request)[0] == 201
            upload.sendall(content[500:])
            status, told = _answer(upload)
            assert (status, json.loads(told)["data"]["sha256"]) == (200, sha256)
    assert served.popen.wait(60) == 0
    asking.close()
    assert not served.lines(level="critical")
    uploads = served.lines("request", publication_id=begun["publication_id"])
    assert [(line["method"], line["status"]) for line in uploads] == [("POST", 200), ("PUT", 200)]
    assert len({line["correlation_id"] for line in uploads}) == 1

    platform = made.open()
    row = platform.database.read_now(lambda on: on.get_one(Publication, publication_id))
    job = platform.database.read_now(lambda on: on.get_one(Job, publication_id))
    assert (row.status, job.lease, job.attempts) == (Status.VERIFYING, None, 0)
    platform.database.close()


def _refuses(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return False
    return True


@pytest.mark.one_database
def test_sigint_ends_it_without_waiting_for_a_proxy(served: Process) -> None:
    served.signal(signal.SIGINT)
    assert served.popen.wait(60) == 0
    assert "Finished server process" in served.log.read_text()


@pytest.mark.one_database
def test_a_second_signal_ends_it_at_once(made: Made, wait_for: Callable[[Callable[[], bool]], None]) -> None:
    with (
        process(made, "--limit", "drain_seconds=3600") as served,
        httpx.Client(base_url=served.url, trust_env=False, timeout=60) as client,
    ):
        served.signal(signal.SIGTERM)
        wait_for(lambda: client.get("/readyz").status_code == 503)
        assert served.stop() == -signal.SIGTERM


@pytest.mark.one_database
def test_a_request_that_never_ends_holds_it_for_so_long_only(made: Made) -> None:
    """The bound is the operator's, and the exit code still says that all is well."""
    with (
        process(made, "--limit", "stop_seconds=1") as served,
        socket.create_connection(("127.0.0.1", served.port), 60) as connection,
    ):
        connection.sendall(_request("POST /api/v1/system/node_platforms", 1000))
        served.signal(signal.SIGINT)
        assert served.popen.wait(60) == 0
