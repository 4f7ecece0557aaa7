"""The platform's REST as tests call it, and a pipeline that signs its webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

PREFIX = "/api/v1/system"


class Api:
    """REST with one token; every answer must have the envelope, and none may be a 5xx."""

    def __init__(self, client: httpx.Client, token: str | None) -> None:
        self.client = client
        self.token = token

    def with_token(self, token: str | None) -> Api:
        return Api(self.client, token)

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token}"} if self.token is not None else {}
        answer = self.client.request(
            method, PREFIX + path, headers={**headers, **options.pop("headers", {})}, **options
        )
        assert answer.status_code < 500, answer.text
        assert answer.json()["success"] is (answer.status_code < 400)
        return answer

    def get(self, path: str, **query: Any) -> Any:
        """The data of an answer that is no error."""
        return self._data(self.call("GET", path, params=query))

    def post(self, path: str, body: Any = None) -> Any:
        return self._data(self.call("POST", path, json=body))

    def patch(self, path: str, body: Any) -> Any:
        return self._data(self.call("PATCH", path, json=body))

    def delete(self, path: str) -> Any:
        return self._data(self.call("DELETE", path))

    def error(self, status: int, method: str, path: str, **options: Any) -> str:
        """The text of an error with that status."""
        answer = self.call(method, path, **options)
        assert answer.status_code == status, answer.text
        assert answer.json()["hint"]
        error: str = answer.json()["error"]
        return error

    def _data(self, answer: httpx.Response) -> Any:
        assert answer.status_code in (200, 201), answer.text
        return answer.json()["data"]


def plain(secret: str, body: bytes) -> dict[str, str]:
    """The reference's signature."""
    return {"x-powernode-signature": f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"}


def standard(secret: str, body: bytes, at: datetime, identifier: str) -> dict[str, str]:
    """Standard Webhooks' headers."""
    timestamp = str(int(at.timestamp()))
    signed = f"{identifier}.{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return {
        "webhook-id": identifier,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


@dataclass(frozen=True)
class Pipeline:
    """Something that reports images to a webhook."""

    client: httpx.Client
    clock: Callable[[], datetime]
    webhook_id: str
    secret: str
    platform_slug: str = "debian"

    def body(self, **fields: Any) -> bytes:
        """A body with these fields; None leaves one out."""
        values: dict[str, Any] = {
            "platform_slug": self.platform_slug,
            "oci_ref": "registry.example/os/debian:13",
        }
        values |= fields
        return json.dumps({name: value for name, value in values.items() if value is not None}).encode()

    def send(self, body: bytes, headers: Mapping[str, str], webhook_id: str | None = None) -> httpx.Response:
        """A delivery as it is."""
        return self.client.post(
            f"{PREFIX}/webhooks/disk_image/built/{webhook_id or self.webhook_id}",
            content=body,
            headers={"content-type": "application/json", **headers},
        )

    def plain(self, **fields: Any) -> httpx.Response:
        """A delivery signed in the reference's form."""
        body = self.body(**fields)
        return self.send(body, plain(self.secret, body))

    def standard(self, identifier: str | None = None, **fields: Any) -> httpx.Response:
        """A delivery signed as Standard Webhooks."""
        body = self.body(**fields)
        name = identifier or f"msg_{secrets.token_hex(8)}"
        return self.send(body, standard(self.secret, body, self.clock(), name))
