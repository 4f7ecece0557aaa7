"""The client that pipelines have and this server, over loopback, with real verification."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import anyio
import httpx
import pytest

from platform_client.actions import Actions, Publication, open_actions
from platform_client.errors import Refused
from platform_client.upload import UploadedImage, upload_image
from platform_server.settings import Settings
from platform_server.state_folder import Platform
from platform_server.upload_files import file_of
from tests.platform_server.made import Made
from tests.platform_server.serving import serving
from tests.platform_server.verifying import POLICY
from tests.supply_chain.archives import archive, member
from tests.supply_chain.verify.forge import HONEST, IDENTITY, Forge
from tests.supply_chain.verify.signed_image import COMMIT, Signed, make_image, sign, write

_Result = TypeVar("_Result")


@pytest.fixture
def served(made: Made, forge: Forge) -> Iterator[tuple[Platform, str]]:
    """A platform that verifies, and its URL."""
    platform = made.open(Settings(trust=forge.trust.path))
    with serving(platform, public=True) as (host, port):
        yield platform, f"http://{host}:{port}"
    platform.database.close()


@pytest.fixture
def act(served: tuple[Platform, str], made: Made) -> Callable[[Callable[[Actions], Awaitable[Any]]], Any]:
    """Run a function with the administrator's actions."""

    def run(function: Callable[[Actions], Awaitable[_Result]]) -> _Result:
        async def acting() -> _Result:
            async with open_actions(served[1], made.admin_token) as actions:
                return await function(actions)

        return anyio.run(acting)

    return run


class Uploader:
    """Uploads as a new CI worker, and waits for the verdict."""

    def __init__(self, served: tuple[Platform, str], made: Made, act: Any) -> None:
        self.platform, self.url = served
        self.node_platform = act(lambda on: on.create_node_platform("debian", **POLICY))
        self._act = act
        answer = httpx.post(
            f"{self.url}/api/v1/system/ci_workers",
            json={"name": "runner"},
            headers={"authorization": f"Bearer {made.admin_token}"},
            trust_env=False,
        )
        self._token = answer.json()["data"]["token_plaintext"]

    def upload(self, file: Path, git_sha: str = COMMIT) -> UploadedImage:
        return anyio.run(
            lambda: upload_image(
                self.url, self._token, file, platform_name="debian", git_sha=git_sha, arch="amd64"
            )
        )

    def verdict(self, uploaded: UploadedImage) -> Publication:
        """What became of it."""
        for _ in range(600):
            found: Publication = self._act(
                lambda on: on.publication(self.node_platform.id, uploaded.publication_id)
            )
            if found.status not in ("queued", "awaiting_upload", "verifying"):
                return found
            time.sleep(0.05)
        raise AssertionError("no verdict within 30 s")


@pytest.fixture
def uploader(served: tuple[Platform, str], made: Made, act: Any) -> Uploader:
    return Uploader(served, made, act)


def tar(folder: Path, signed: Signed) -> Path:
    """The archive as a pipeline makes it."""
    write(folder, signed.files)
    path = folder.with_suffix(".tar")
    names = ["oci-layout", "index.json", "blobs"]
    subprocess.run(
        ["tar", "--format=ustar", f"--directory={folder}", f"--file={path}", "-c", *names], check=True
    )
    return path


def test_an_upload_is_verified_and_published(
    uploader: Uploader, tmp_path: Path, forge: Forge, act: Any
) -> None:
    signed = sign(forge, make_image())
    file = tar(tmp_path / "layout", signed)
    uploaded = uploader.upload(file)
    assert (uploaded.status, uploaded.idempotent) == ("verifying", False)
    published = uploader.verdict(uploaded)
    assert published.status == "published", published.error_message
    assert published.oci_digest == signed.image.digest
    assert (published.cosign_verified, published.is_default) == (True, True)
    assert (published.git_sha, published.oci_ref) == (COMMIT, None)
    again = uploader.upload(file)
    assert again == UploadedImage(uploaded.publication_id, "published", True)
    (event,) = act(lambda on: on.recent_events("system.disk_image_"))
    assert event.kind == "system.disk_image_published"
    assert event.payload["publication_id"] == uploaded.publication_id
    assert file_of(uploader.platform, UUID(uploaded.publication_id)).is_file()


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        ("unsigned", "verification_failed"),
        ("other signer", "verification_failed"),
        ("bundle of another image", "verification_failed"),
        ("changed layer", "verification_failed"),
        ("other commit", "claim_mismatch"),
        ("no archive", "not a tar header"),
        ("symbolic link", "is a symbolic link"),
        ("path traversal", "found '../../x'"),
    ],
)
def test_a_bad_upload_is_refused_like_any_other_image(
    uploader: Uploader, tmp_path: Path, forge: Forge, attack: str, says: str
) -> None:
    signed = sign(forge, make_image())
    files = dict(signed.files)
    commit, more = COMMIT, []
    match attack:
        case "unsigned":
            files = dict(Signed(signed.image, {}).files)
        case "other signer":
            names = replace(HONEST, identity=f"x{IDENTITY}")
            files = dict(sign(forge, make_image(), names).files)
        case "bundle of another image":
            files = dict(Signed(signed.image, sign(forge, make_image("other")).bundles).files)
        case "changed layer":
            name, content = next((n, c) for n, c in files.items() if len(c) == 20_000 or len(c) == 9_000)
            files[name] = bytes([content[0] ^ 1]) + content[1:]
        case "other commit":
            commit = "2f" * 20
        case "symbolic link":
            more = [member(f"blobs/sha256/{'a' * 64}", b"2", "/etc/passwd")]
        case "path traversal":
            more = [member("../../x")]
    file = tmp_path / "image.tar"
    file.write_bytes(b"x" * 5000 if attack == "no archive" else archive(files, more))
    failed = uploader.verdict(uploader.upload(file, commit))
    assert failed.status == "failed"
    assert failed.error_message is not None
    assert says in failed.error_message
    assert failed.cosign_verified is False


def test_other_bytes_of_a_published_commit_are_a_conflict(
    uploader: Uploader, tmp_path: Path, forge: Forge
) -> None:
    first = uploader.verdict(uploader.upload(tar(tmp_path / "first", sign(forge, make_image()))))
    other = tar(tmp_path / "other", sign(forge, make_image("other")))
    with pytest.raises(Refused, match="published_artifact_mismatch"):
        uploader.upload(other)
    assert uploader.verdict(UploadedImage(first.id, "", True)) == first
