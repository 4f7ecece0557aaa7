"""Direct upload: an image's bytes to the platform's own storage, for pipelines without a registry.

1. initiate: the platform is told name, digest and size, and gives a place to put the bytes.
2. put: they go there by one PUT. The place's URL is all the permission that needs; no token goes with it.
3. finalize: the platform is told that all is there, and checks it.

Each step may be run again; an image that is published already ends it after the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import httpx

from pipelines.errors import UsageError
from platform_client.calls import POLICY, Calls, answered_data, open_calls, refusal
from platform_client.errors import NotThePlatform
from platform_client.settings import check_secret, check_url
from supply_chain.registry.retry import Policy
from supply_chain.registry.wire import Body

_BASE = "api/v1/system/worker_api/disk_image_publications/"
_CHUNK = 1 << 20
_HINTS = {
    401: "give a CI worker's token that is valid",
    403: "give the token of a CI worker of this account that may publish",
    404: "create the platform there, or name another one",
}
_STORAGE_HINTS = dict.fromkeys(
    (401, 403, 404, 410), "upload again: a place to put it is good for a while only"
)


@dataclass(frozen=True, slots=True)
class UploadedImage:
    """What the platform made of it; `idempotent` when it has the image already, in the state `status`."""

    publication_id: str
    status: str
    idempotent: bool


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    size: int
    sha256: str

    def body(self) -> Body:
        """Its bytes from their start, as often as needed."""
        return Body(self.size, self._open)

    async def _open(self) -> AsyncIterator[bytes]:
        async with await anyio.open_file(self.path, "rb") as file:
            while chunk := await file.read(_CHUNK):
                yield chunk


async def upload_image(
    url: str,
    worker_token: str,
    file: Path,
    *,
    platform_name: str,
    git_sha: str,
    arch: str,
    firmware_ref: str | None = None,
    policy: Policy | None = None,
    ca_file: Path | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> UploadedImage:
    """Upload `file` to the platform at `url` (its root) as the CI worker that `worker_token` is of.

    Raises UsageError, Unreachable, Refused and NotThePlatform.
    """
    base = check_url(url if url.endswith("/") else f"{url}/", "the platform's URL")
    token = check_secret(worker_token, "the worker's token")
    policy = policy or POLICY
    image = await anyio.to_thread.run_sync(_measured, file)
    facts = {
        "platform_name": platform_name,
        "sha256": image.sha256,
        "size_bytes": image.size,
        "git_sha": git_sha,
        "arch": arch,
        **({} if firmware_ref is None else {"firmware_ref": firmware_ref}),
    }
    async with open_calls(base, (token,), policy=policy, ca_file=ca_file, transport=transport) as calls:
        worker = _Worker(calls, base, token)
        begun = await worker.ask("initiate", facts)  # 1
        publication = _text(begun, "publication_id", calls)
        if begun.get("idempotent_hit"):
            return UploadedImage(publication, str(begun.get("publication_status") or "published"), True)
        place = _place(base, _text(begun, "signed_upload_url", calls))
        # A large file may take its time, as long as it moves.
        patient = replace(policy, patience=policy.patience + image.size / policy.slowest)
        await _put(place, image, patient, ca_file, transport)  # 2
        done = await worker.ask(
            "finalize", {"publication_id": publication, "sha256_verify": image.sha256}
        )  # 3
    return UploadedImage(publication, _text(done, "publication_status", calls), False)


class _Worker:
    def __init__(self, calls: Calls, base: httpx.URL, token: str) -> None:
        self._calls = calls
        self._base = base
        self._headers = {
            "x-worker-token": token,
            "accept": "application/json",
            "content-type": "application/json",
        }

    async def ask(self, action: str, body: Mapping[str, object]) -> Mapping[str, Any]:
        answer = await self._calls.send(
            "POST",
            self._base.join(_BASE + action),
            lambda: self._headers,
            Body.of(json.dumps(body).encode()),
        )
        return answered_data(answer, self._calls, action, _HINTS)


async def _put(
    place: httpx.URL,
    image: _File,
    policy: Policy,
    ca_file: Path | None,
    transport: httpx.AsyncBaseTransport | None,
) -> None:
    secrets = (place.raw_path.decode(), place.path, *place.params.values())
    async with open_calls(
        place, secrets, policy=policy, ca_file=ca_file, who="the storage", transport=transport
    ) as calls:
        answer = await calls.send(
            "PUT", place, lambda: {"content-type": "application/octet-stream"}, image.body()
        )
        if not 200 <= answer.status < 300:
            raise refusal(answer, calls, "the upload", _STORAGE_HINTS)


def _measured(path: Path) -> _File:
    sha256 = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", "name the file to upload") from None
    if not size:
        raise UsageError(f"{path}: is empty", "name the file to upload")
    return _File(path, size, sha256.hexdigest())


def _place(base: httpx.URL, text: str) -> httpx.URL:
    try:
        return check_url(str(base.join(text)), "signed_upload_url")
    except (UsageError, httpx.InvalidURL) as error:
        what = error.what if isinstance(error, UsageError) else "no URL"
        raise NotThePlatform(
            f"the platform's place to upload to: {what}", "see the platform's storage"
        ) from None


def _text(told: Mapping[str, Any], key: str, calls: Calls) -> str:
    value = told.get(key)
    if not isinstance(value, str | int) or value == "":
        raise NotThePlatform(f"{calls.who}: expected {key}, found none", "see the platform's version")
    return str(value)
