"""Direct upload: initiate, put, finalize; and what must not come of it."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import anyio
import httpx
import pytest

from platform_server import upload_files, uploads
from platform_server.settings import Limits, Settings
from platform_server.state_folder import Platform
from platform_server.states import Transition, move
from platform_server.tables import Job, Publication
from platform_server.upload_files import file_of
from tests.platform_server import rows
from tests.platform_server.api import Api
from tests.platform_server.clock import Clock
from tests.platform_server.serving import serving, talk

BASE = "/worker_api/disk_image_publications"
CONTENT = b"an image" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "1f" * 20
POLICY = {
    "cosign_identity_regexp": "https://git[.]example/.+",
    "cosign_issuer_regexp": "https://git[.]example",
}


@pytest.fixture
def settings() -> Settings:
    return Settings(workers=0, limits=replace(Limits(), body=4096, upload=1_000_000))


@pytest.fixture
def worker(api: Api) -> Api:
    """REST as a CI worker, and a platform with a policy."""
    api.post("/node_platforms", {"node_platform": {"name": "debian", **POLICY}})
    return api.with_token(api.post("/ci_workers", {"name": "runner"})["token_plaintext"])


def offer(**fields: Any) -> dict[str, Any]:
    body = {"platform_name": "debian", "sha256": SHA256, "size_bytes": len(CONTENT), "git_sha": COMMIT}
    return {name: value for name, value in {**body, **fields}.items() if value is not None}


def place_of(begun: dict[str, Any]) -> str:
    url = urlsplit(begun["signed_upload_url"])
    return f"{url.path}?{url.query}"


def put(api: Api, place: str, content: bytes | Iterator[bytes] = CONTENT) -> httpx.Response:
    return api.client.put(place, content=content, headers={"content-type": "application/octet-stream"})


def finalize(worker: Api, begun: dict[str, Any], sha256: str = SHA256) -> dict[str, Any]:
    body = {"publication_id": begun["publication_id"], "sha256_verify": sha256}
    done: dict[str, Any] = worker.post(f"{BASE}/finalize", body)
    return done


def publication(platform: Platform, begun: dict[str, Any]) -> Publication:
    return platform.database.read_now(lambda on: on.get_one(Publication, UUID(begun["publication_id"])))


def test_three_steps_lead_to_the_queue(worker: Api, platform: Platform, clock: Clock) -> None:
    begun = worker.post(f"{BASE}/initiate", offer(firmware_ref="uefi"))
    assert begun["idempotent_hit"] is False
    assert begun["publication_status"] == "awaiting_upload"
    assert begun["file_object_id"] == begun["publication_id"]
    assert begun["upload_expires_at"] == "2026-03-01T13:00:00Z"
    row = publication(platform, begun)
    assert (row.oci_ref, row.oci_digest, row.sha256, row.size_bytes) == (None, None, None, None)
    assert (row.git_sha, row.arch, row.firmware_ref) == (COMMIT, "amd64", "uefi")
    assert row.worker_id is not None
    stored = put(worker, place_of(begun)).json()["data"]
    assert (stored["sha256"], stored["size_bytes"]) == (SHA256, len(CONTENT))
    done = finalize(worker, begun)
    assert done["publication_status"] == "verifying"
    assert file_of(platform, row.id).read_bytes() == CONTENT
    assert file_of(platform, row.id).stat().st_mode & 0o777 == 0o600
    assert platform.database.read_now(lambda on: on.get(Job, row.id)) is not None


def test_every_step_can_be_repeated(worker: Api, platform: Platform) -> None:
    first = worker.post(f"{BASE}/initiate", offer())
    again = worker.post(f"{BASE}/initiate", offer())
    assert again["publication_id"] == first["publication_id"]
    for place in (place_of(first), place_of(again)):
        assert put(worker, place).status_code == 200
    assert finalize(worker, first) == finalize(worker, first)
    hit = worker.post(f"{BASE}/initiate", offer())
    assert (hit["idempotent_hit"], hit["publication_status"]) == (True, "verifying")
    assert hit["signed_upload_url"] is None
    assert put(worker, place_of(first)).status_code == 409
    assert os.listdir(platform.uploads) == [f"{first['publication_id']}.tar"]


def test_initiate_answers_for_what_is_published(worker: Api, platform: Platform, clock: Clock) -> None:
    begun = worker.post(f"{BASE}/initiate", offer())

    def publish(on: Any) -> None:
        row = on.get_one(Publication, UUID(begun["publication_id"]))
        move(row, Transition.START_VERIFYING, clock())
        on.flush()
        for name, value in rows.verified().items():
            setattr(row, name, COMMIT if name == "git_sha" else value)
        move(row, Transition.MARK_PUBLISHED, clock())

    platform.database.write_now(publish)
    hit = worker.post(f"{BASE}/initiate", offer())
    assert (hit["idempotent_hit"], hit["publication_status"]) == (True, "published")
    error = worker.error(409, "POST", f"{BASE}/initiate", json=offer(sha256="0" * 64))
    assert "published_artifact_mismatch" in error

    def retire(on: Any) -> None:
        move(on.get_one(Publication, UUID(begun["publication_id"])), Transition.RETIRE, clock())

    platform.database.write_now(retire)
    before = publication(platform, begun)
    hit = worker.post(f"{BASE}/initiate", offer())
    assert (hit["publication_id"], hit["publication_status"]) == (begun["publication_id"], "retired")
    after = publication(platform, begun)
    assert before.payload == after.payload
    assert before.certificate_identity == after.certificate_identity

    def purge(on: Any) -> None:
        move(on.get_one(Publication, UUID(begun["publication_id"])), Transition.PURGE, clock())

    platform.database.write_now(purge)
    new = worker.post(f"{BASE}/initiate", offer())
    assert new["publication_id"] != begun["publication_id"]
    fresh = publication(platform, new)
    assert (fresh.git_sha, fresh.upload_sha256) == (COMMIT, SHA256)
    assert (fresh.certificate_identity, fresh.published_at, fresh.error_message) == (None, None, None)


def test_another_upload_of_the_commit_is_a_conflict(worker: Api, platform: Platform) -> None:
    begun = worker.post(f"{BASE}/initiate", offer())
    for changed in ({"sha256": "0" * 64}, {"size_bytes": 5}):
        error = worker.error(409, "POST", f"{BASE}/initiate", json=offer(**changed))
        assert begun["publication_id"] in error
    row = publication(platform, begun)
    assert (row.upload_sha256, row.upload_size_bytes) == (SHA256, len(CONTENT))


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"platform_name": "nothing"}, 404, "node platform 'nothing'"),
        ({"platform_name": "bare"}, 422, "no_trust_policy"),
        ({"platform_name": "../x"}, 422, "platform_name"),
        ({"sha256": "A" * 64}, 422, "sha256"),
        ({"sha256": "a" * 63}, 422, "sha256"),
        ({"size_bytes": 0}, 422, "size_bytes"),
        ({"size_bytes": -1}, 422, "size_bytes"),
        ({"size_bytes": "9"}, 422, "size_bytes"),
        ({"size_bytes": 1_000_001}, 413, "expected at most 1000000"),
        ({"git_sha": None}, 422, "git_sha"),
        ({"git_sha": "main"}, 422, "git_sha"),
        ({"arch": "x86"}, 422, "arch"),
        ({"firmware_ref": "a\nb"}, 422, "firmware_ref"),
        ({"oci_ref": "file:///etc/passwd"}, 422, "oci_ref"),
    ],
)
def test_what_can_not_be_initiated(
    worker: Api, api: Api, platform: Platform, fields: dict[str, Any], status: int, says: str
) -> None:
    api.post("/node_platforms", {"node_platform": {"name": "bare"}})
    assert says in worker.error(status, "POST", f"{BASE}/initiate", json=offer(**fields))
    count = platform.database.read_now(lambda on: on.query(Publication).count())
    assert count == 0


def test_room_is_promised_once(worker: Api) -> None:
    worker.post(f"{BASE}/initiate", offer(size_bytes=600_000))
    error = worker.error(413, "POST", f"{BASE}/initiate", json=offer(git_sha="2f" * 20, size_bytes=600_000))
    assert "expected at most 400000" in error


def test_a_full_disk_is_said_before_the_upload(worker: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_files, "RESERVE", 2**62)
    assert "expected at most 0" in worker.error(413, "POST", f"{BASE}/initiate", json=offer())


def test_a_disk_that_is_full_while_the_bytes_come_is_told_and_nothing_is_kept(
    worker: Api, platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun = worker.post(f"{BASE}/initiate", offer())

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("platform_server.upload_files._append", full)
    answer = put(worker, place_of(begun))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
    assert answer.json()["error"] == "the upload can't be kept: No space left on device"
    assert "an upload can't be kept: No space left on device" in caplog.text
    assert os.listdir(platform.uploads) == []
    monkeypatch.undo()
    assert put(worker, place_of(begun)).status_code == 200


def test_another_account_reaches_nothing(worker: Api, other: Api, platform: Platform) -> None:
    begun = worker.post(f"{BASE}/initiate", offer())
    theirs = other.with_token(other.post("/ci_workers", {"name": "theirs"})["token_plaintext"])
    theirs.error(404, "POST", f"{BASE}/initiate", json=offer())
    body = {"publication_id": begun["publication_id"], "sha256_verify": SHA256}
    theirs.error(404, "POST", f"{BASE}/finalize", json=body)
    assert publication(platform, begun).status == "awaiting_upload"


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 422, "Content-Length"),
        (CONTENT[:-1], 422, "Content-Length"),
        (CONTENT + b"x", 422, "Content-Length"),
        (CONTENT[:-1] + b"x", 422, "sha256"),
        ([CONTENT, b"x"], 413, "found more"),
        ([CONTENT[:-1]], 422, f"found {len(CONTENT) - 1}"),
        ([b"a" * 100_000] * 100, 413, "found more"),
    ],
    ids=[
        "nothing",
        "truncated",
        "longer",
        "changed",
        "longer in chunks",
        "shorter in chunks",
        "ten megabytes",
    ],
)
def test_other_bytes_are_refused_and_not_kept(
    worker: Api, platform: Platform, content: bytes | list[bytes], status: int, says: str
) -> None:
    begun = worker.post(f"{BASE}/initiate", offer())
    answer = put(worker, place_of(begun), content if isinstance(content, bytes) else iter(content))
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]
    assert os.listdir(platform.uploads) == []
    error = worker.error(
        409,
        "POST",
        f"{BASE}/finalize",
        json={"publication_id": begun["publication_id"], "sha256_verify": SHA256},
    )
    assert "have not arrived" in error


def test_a_part_that_goes_while_it_is_looked_at_stops_no_sweep(platform: Platform) -> None:
    # listed, and not there any more when it is asked for
    (platform.uploads / f"{UUID(int=7)}.x.part").symlink_to("gone")
    assert anyio.run(upload_files.sweep, platform) == 0


def test_a_place_is_signed_for_one_publication_and_time(
    worker: Api, platform: Platform, clock: Clock
) -> None:
    mine = worker.post(f"{BASE}/initiate", offer())
    theirs = worker.post(f"{BASE}/initiate", offer(git_sha="2f" * 20))
    place = place_of(mine)
    path, _, query = place.partition("?")
    later = query.replace("expires=", "expires=1")
    for wrong in (
        path.replace(mine["publication_id"], theirs["publication_id"]) + f"?{query}",
        f"{path}?{later}",
        f"{path}?{query[:-1]}{'0' if query[-1] != '0' else '1'}",
        f"{path}?{query[:-64]}",
        f"{path}?{query[:-64]}%C3%A9",
    ):
        answer = put(worker, wrong)
        assert answer.status_code == 403, wrong
        assert "signature=" not in answer.text
    assert put(worker, f"{path}?{query}{'0' * 100}").status_code == 422
    assert put(worker, path).status_code == 422
    assert os.listdir(platform.uploads) == []
    clock.pass_by(minutes=60)
    assert put(worker, place).status_code == 403


def test_a_path_out_of_the_folder_is_no_publication(worker: Api, platform: Platform) -> None:
    begun = worker.post(f"{BASE}/initiate", offer())
    query = place_of(begun).partition("?")[2]
    for name in ("..%2fplatform.db", "..%2f..%2fx", "%00", "platform.db"):
        assert put(worker, f"/api/v1/system/uploads/{name}?{query}").status_code in (404, 422)
    assert os.listdir(platform.uploads) == []


def test_a_slow_upload_is_cut_off(worker: Api, platform: Platform) -> None:
    place = place_of(worker.post(f"{BASE}/initiate", offer()))
    limits = replace(platform.settings.limits, body_seconds=0.2, header_seconds=0.2)
    impatient = replace(platform, settings=replace(platform.settings, limits=limits))
    head = f"PUT {place} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(CONTENT)}\r\n\r\n".encode()
    with serving(impatient) as address:
        answer = talk(address, head + CONTENT[:10])
    assert b" 408 " in answer
    assert b"found none for 0.2 s" in answer
    assert os.listdir(platform.uploads) == []


def test_one_put_at_a_time(worker: Api, platform: Platform) -> None:
    begun = worker.post(f"{BASE}/initiate", offer())
    started, go_on = threading.Event(), threading.Event()
    answers: list[int] = []

    def slowly() -> Iterator[bytes]:
        yield CONTENT[:10]
        started.set()
        go_on.wait(0.3)
        yield CONTENT[10:]

    thread = threading.Thread(
        target=lambda: answers.append(put(worker, place_of(begun), slowly()).status_code)
    )
    thread.start()
    assert started.wait(10)
    second = put(worker, place_of(begun))
    go_on.set()
    thread.join(20)
    assert sorted([*answers, second.status_code]) in ([200, 429], [200, 200])
    assert os.listdir(platform.uploads) == [f"{begun['publication_id']}.tar"]


def test_an_abandoned_upload_fails_and_its_bytes_go(
    worker: Api, api: Api, platform: Platform, clock: Clock
) -> None:
    abandoned = worker.post(f"{BASE}/initiate", offer())
    put(worker, place_of(abandoned))
    kept = worker.post(f"{BASE}/initiate", offer(git_sha="2f" * 20))
    put(worker, place_of(kept))
    finalize(worker, kept)
    part = platform.uploads / f"{abandoned['publication_id']}.x.part"
    part.touch()
    stranger = platform.uploads / f"{UUID(int=7)}.tar"
    stranger.touch()
    clock.pass_by(minutes=59)
    assert anyio.run(upload_files.sweep, platform) == 0
    assert not stranger.exists()
    assert file_of(platform, UUID(abandoned["publication_id"])).exists()
    clock.pass_by(minutes=2)
    old = (clock() - timedelta(hours=2)).timestamp()
    os.utime(part, (old, old))
    assert anyio.run(upload_files.sweep, platform) == 1
    assert anyio.run(upload_files.sweep, platform) == 0
    row = publication(platform, abandoned)
    assert row.status == "failed"
    assert row.error_message is not None
    assert row.error_message.startswith("upload_expired")
    assert os.listdir(platform.uploads) == [f"{kept['publication_id']}.tar"]
    (event,) = api.get("/events", kind_prefix="system.disk_image_publish_failed")["events"]
    assert event["payload"]["publication_id"] == abandoned["publication_id"]
    assert event["source"] == "ci_pipeline_direct"
    again = worker.post(f"{BASE}/initiate", offer())
    assert again["publication_id"] != abandoned["publication_id"]
    assert publication(platform, again).status == "awaiting_upload"


def test_initiating_again_gives_more_time(worker: Api, platform: Platform, clock: Clock) -> None:
    worker.post(f"{BASE}/initiate", offer())
    clock.pass_by(minutes=50)
    begun = worker.post(f"{BASE}/initiate", offer())
    clock.pass_by(minutes=50)
    assert anyio.run(upload_files.sweep, platform) == 0
    assert put(worker, place_of(begun)).status_code == 200


def test_finalize_is_exact(worker: Api, api: Api, platform: Platform, clock: Clock) -> None:
    begun = worker.post(f"{BASE}/initiate", offer())
    put(worker, place_of(begun))
    wrong = {"publication_id": begun["publication_id"], "sha256_verify": "0" * 64}
    assert SHA256 in worker.error(422, "POST", f"{BASE}/finalize", json=wrong)
    unknown = {"publication_id": str(UUID(int=7)), "sha256_verify": SHA256}
    worker.error(404, "POST", f"{BASE}/finalize", json=unknown)

    def queued(on: Any) -> str:
        return str(rows.publication(on, clock(), rows.node_platform(on, clock(), "plain")).id)

    no_upload = {"publication_id": platform.database.write_now(queued), "sha256_verify": SHA256}
    assert "current=queued" in worker.error(422, "POST", f"{BASE}/finalize", json=no_upload)


def test_an_account_awaits_so_many_uploads_at_most(
    worker: Api, other: Api, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that initiates and never uploads stops its own account alone."""
    monkeypatch.setattr(uploads, "MOST_AWAITED", 3)
    begun = [worker.post(f"{BASE}/initiate", offer(git_sha=f"{each:040x}")) for each in range(3)]
    answer = worker.call("POST", f"{BASE}/initiate", json=offer())
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
    # the one that is there goes on
    assert (
        worker.post(f"{BASE}/initiate", offer(git_sha=f"{0:040x}"))["publication_id"]
        == (begun[0]["publication_id"])
    )
    other.post("/node_platforms", {"node_platform": {"name": "debian", **POLICY}})
    theirs = other.with_token(other.post("/ci_workers", {"name": "runner"})["token_plaintext"])
    assert theirs.post(f"{BASE}/initiate", offer())["publication_status"] == "awaiting_upload"
    put(worker, place_of(begun[0]))
    finalize(worker, begun[0])
    assert worker.post(f"{BASE}/initiate", offer())["publication_status"] == "awaiting_upload"
