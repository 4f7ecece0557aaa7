"""Direct upload: three steps, in order, with the token only where it belongs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from pipelines.errors import UsageError
from platform_client.errors import NotThePlatform, PlatformError, Refused, Unreachable
from platform_client.upload import UploadedImage, upload_image
from supply_chain.registry import Policy
from tests.platform_client.answering import Answered, AnsweringServer, Asked, answering_server, data

TOKEN = "swt_canary-token"
BASE = "/api/v1/system/worker_api/disk_image_publications/"
CONTENT = b"image" * 100_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[AnsweringServer]:
    with answering_server() as running:
        yield running


@pytest.fixture
def storage() -> Iterator[AnsweringServer]:
    """Where the platform has bytes put, on another host."""
    with answering_server() as running:
        running.answer = lambda asked: Answered(200)
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "image").write_bytes(CONTENT)
    return tmp_path / "image"


def upload(server: AnsweringServer, file: Path, policy: Policy, **more: str) -> UploadedImage:
    return anyio.run(
        lambda: upload_image(
            server.url,
            TOKEN,
            file,
            platform_name="debian",
            git_sha="1f" * 20,
            arch="amd64",
            policy=policy,
            **more,  # type: ignore[arg-type]
        )
    )


def serve(server: AnsweringServer, place: str) -> None:
    """Answers as a platform that takes uploads."""

    def answer(asked: Asked) -> Answered:
        if asked.path == f"{BASE}initiate":
            return data(publication_id=7, file_object_id=8, signed_upload_url=place)
        if asked.path == f"{BASE}finalize":
            return data(publication_id=7, publication_status="verifying")
        return Answered(404)

    server.answer = answer


def test_three_steps(server: AnsweringServer, storage: AnsweringServer, file: Path, policy: Policy) -> None:
    serve(server, f"{storage.url}/bucket/image?signature=s1gned")
    done = upload(server, file, policy, firmware_ref="uefi")
    assert done == UploadedImage("7", "verifying", False)
    begin, finish = server.asked
    assert begin.json == {
        "platform_name": "debian",
        "sha256": SHA256,
        "size_bytes": len(CONTENT),
        "git_sha": "1f" * 20,
        "arch": "amd64",
        "firmware_ref": "uefi",
    }
    assert finish.json == {"publication_id": "7", "sha256_verify": SHA256}
    assert {one.headers["x-worker-token"] for one in server.asked} == {TOKEN}
    (put,) = storage.asked
    assert (put.method, put.path) == ("PUT", "/bucket/image?signature=s1gned")
    assert put.body == CONTENT
    assert put.headers["content-type"] == "application/octet-stream"
    assert not [name for name, value in put.headers.items() if TOKEN in value]


def test_a_place_at_the_platform_itself(server: AnsweringServer, file: Path, policy: Policy) -> None:
    serve(server, "/uploads/7?signature=s1gned")
    before = server.answer
    server.answer = lambda asked: Answered(201) if asked.method == "PUT" else before(asked)
    assert upload(server, file, policy).status == "verifying"
    assert "x-worker-token" not in server.asked[1].headers


def test_what_is_published_is_not_uploaded(
    server: AnsweringServer, storage: AnsweringServer, file: Path, policy: Policy
) -> None:
    server.play(data(publication_id="7", idempotent_hit=True, note="already published"))
    assert upload(server, file, policy) == UploadedImage("7", "published", True)
    assert storage.asked == []


def test_every_step_heals(
    server: AnsweringServer, storage: AnsweringServer, file: Path, policy: Policy
) -> None:
    place = f"{storage.url}/image"
    server.play(
        Answered(503),
        data(publication_id="7", signed_upload_url=place),
        Answered(200, cut=True),
        data(publication_id="7", publication_status="verifying"),
    )
    storage.play(Answered(200, cut=True), Answered(500), Answered(200))
    assert upload(server, file, policy).status == "verifying"
    assert [one.body for one in storage.asked] == [CONTENT] * 3


@pytest.mark.parametrize(
    ("place", "rule"),
    [
        ("http://storage.example/image?signature=s1gned", "expected https"),
        ("https://user:s1gned@storage.example/image", "no user or password"),
        ("file:///etc/s1gned", "expected a host"),
        ("", "expected signed_upload_url"),
    ],
)
def test_places_that_are_none(
    place: str, rule: str, server: AnsweringServer, file: Path, policy: Policy
) -> None:
    serve(server, place)
    with pytest.raises(NotThePlatform, match=rule) as caught:
        upload(server, file, policy)
    assert "s1gned" not in caught.value.what


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answered(401, {"success": False, "error": f"bad token {TOKEN}"}), Refused),
        (Answered(422, {"success": False, "error": "no cosign trust policy configured"}), Refused),
        (Answered(200, {"success": False, "error": "no"}), Refused),
        (Answered(200, b"<html>"), NotThePlatform),
        (Answered(301, headers={"Location": "https://elsewhere.example/"}), NotThePlatform),
        (Answered(500), Unreachable),
    ],
)
def test_refused_beginnings(
    answer: Answered, kind: type[PlatformError], server: AnsweringServer, file: Path, policy: Policy
) -> None:
    server.answer = lambda asked: answer
    with pytest.raises(kind) as caught:
        upload(server, file, policy)
    assert TOKEN not in caught.value.what
    assert caught.value.hint


def test_a_place_that_has_expired(
    server: AnsweringServer, storage: AnsweringServer, file: Path, policy: Policy
) -> None:
    serve(server, f"{storage.url}/image?signature=s1gned")
    storage.answer = lambda asked: Answered(403, {"message": "expired: signature=s1gned"})
    with pytest.raises(
        Refused, match=r"the storage at http://127\.0\.0\.1:\d+: the upload: refused with 403"
    ) as caught:
        upload(server, file, policy)
    assert "s1gned" not in caught.value.what
    assert "a while only" in caught.value.hint


def test_files_that_are_none(server: AnsweringServer, tmp_path: Path, policy: Policy) -> None:
    (tmp_path / "empty").touch()
    for name, says in (("none", "No such file"), ("empty", "is empty")):
        with pytest.raises(UsageError, match=says):
            upload(server, tmp_path / name, policy)
    assert server.asked == []
