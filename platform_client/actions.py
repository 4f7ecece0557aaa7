"""The actions of a platform's operators that a pipeline needs, over REST with a bearer token.

    async with open_actions("https://platform.example", token) as actions:
        platform = await actions.create_node_platform("debian-minimal")
        webhook = await actions.create_webhook("ci")
        for publication in await actions.publications(platform.id):
            …

Fields that are not known here are passed over, since platforms grow.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import UsageError
from platform_client.calls import Calls, answered_data, open_calls
from platform_client.errors import NotThePlatform
from platform_client.settings import check_secret, check_url
from supply_chain.registry.retry import Policy
from supply_chain.registry.wire import Body

_BASE = "api/v1/system/"
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,128}")
# More than any account has: a listing that never ends is refused.
_MOST_PAGES = 100

_HINTS = {
    401: "give a token that is valid: disk-image platform token",
    403: "give a token with the permission for it",
    404: "see that it is there, and in this token's account",
}


class _Answered(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)


class NodePlatform(_Answered):
    """A kind of node: what new nodes of it boot, and how its newest publication fares."""

    id: str
    name: str
    arch: str | None = None
    default_publication_id: str | None = None
    disk_image_oci_ref: str | None = None
    disk_image_publication_status: str | None = None
    disk_image_retention_count: int | None = None


class ProvisionedWebhook(_Answered):
    """A new webhook; its secret is shown this once."""

    webhook_id: str
    webhook_url: str = Field(repr=False)
    webhook_secret: str = Field(
        repr=False, validation_alias=AliasChoices("webhook_secret", "secret_plaintext")
    )


class ReadSecret(_Answered):
    """A secret, and which action's answer it belongs to by which name."""

    action: str
    field: str
    secret: str = Field(repr=False)


class Publication(_Answered):
    """An image at the platform: `status` is one of its states (docs/reference of the platform)."""

    id: str
    status: str
    arch: str | None = None
    git_sha: str | None = None
    oci_ref: str | None = None
    oci_digest: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    cosign_verified: bool | None = None
    is_default: bool | None = Field(default=None, validation_alias=AliasChoices("is_default", "active"))
    error_message: str | None = None


class Event(_Answered):
    """Something that happened, for example `system.disk_image_published`."""

    id: str
    kind: str
    payload: Mapping[str, Any]


_Model = TypeVar("_Model", bound=BaseModel)


class Actions:
    """Make one with `open_actions`. Every method raises Unreachable, Refused and NotThePlatform, and
    UsageError for an id that is none."""

    def __init__(self, calls: Calls, base: httpx.URL, token: str) -> None:
        self._calls = calls
        self._base = base
        self._headers = {"authorization": f"Bearer {token}", "accept": "application/json"}

    async def node_platforms(self) -> list[NodePlatform]:
        """All of the account's, the newest first."""
        return await self._all("node_platforms", "node_platforms", NodePlatform)

    async def create_node_platform(self, name: str, **fields: object) -> NodePlatform:
        """Make a platform; `fields` as the platform documents them (arch, cosign_identity_regexp, …)."""
        body = {"node_platform": {"name": name, **fields}}
        data = await self._ask("POST", "node_platforms", body, repeatable=False)
        return self._read(NodePlatform, data, "node_platform")

    async def set_retention(self, platform_id: str, count: int) -> NodePlatform:
        """Keep this many publications of a platform."""
        body = {"node_platform": {"disk_image_retention_count": count}}
        data = await self._ask("PATCH", f"node_platforms/{_segment(platform_id)}", body)
        return self._read(NodePlatform, data, "node_platform")

    async def create_webhook(self, label: str) -> ProvisionedWebhook:
        """Make a webhook."""
        data = await self._ask("POST", "disk_image_webhooks", {"label": label}, repeatable=False)
        made = data.get("disk_image_webhook")
        if isinstance(made, dict):
            data = {"webhook_id": made.get("id"), **data}
        return self._read(ProvisionedWebhook, data)

    async def read_secret(self, secret_id: str) -> ReadSecret:
        """Read a secret that an action over MCP made; it can be read this once."""
        data = await self._ask("POST", f"secrets/{_segment(secret_id)}", {}, repeatable=False)
        return self._read(ReadSecret, data)

    async def publications(self, platform_id: str, *, status: str | None = None) -> list[Publication]:
        """A platform's, the newest first, by choice only those in one state."""
        query = {} if status is None else {"status": status}
        return await self._all(_publications(platform_id), "disk_image_publications", Publication, query)

    async def publication(self, platform_id: str, publication_id: str) -> Publication:
        """One of a platform's."""
        data = await self._ask("GET", f"{_publications(platform_id)}/{_segment(publication_id)}")
        return self._read(Publication, data, "disk_image_publication")

    async def set_default(self, platform_id: str, publication_id: str) -> None:
        """Have new nodes boot this publication."""
        path = f"{_publications(platform_id)}/{_segment(publication_id)}/set_default"
        await self._ask("POST", path, {})

    async def rollback(self, platform_id: str, publication_id: str | None = None) -> None:
        """Have new nodes boot an earlier publication, the one before the present default unless it is
        named.
        """
        path = f"node_platforms/{_segment(platform_id)}/rollback_disk_image"
        body = {} if publication_id is None else {"publication_id": publication_id}
        # Sent twice, an unnamed one would go back twice.
        await self._ask("POST", path, body, repeatable=publication_id is not None)

    async def recent_events(self, kind_prefix: str = "", limit: int = 50) -> list[Event]:
        """What happened last, the newest first, by choice only kinds that start so."""
        data = await self._ask("GET", "events", query={"kind_prefix": kind_prefix, "limit": str(limit)})
        return self._rows(data, "events", Event)

    async def _all(
        self, path: str, key: str, model: type[_Model], query: Mapping[str, str] | None = None
    ) -> list[_Model]:
        """Every page of a list."""
        found: list[_Model] = []
        asked = dict(query or {})
        for _ in range(_MOST_PAGES):
            data = await self._ask("GET", path, query=asked)
            found += self._rows(data, key, model)
            meta = data.get("meta")
            following = meta.get("next") if isinstance(meta, dict) else None
            if not isinstance(following, str):
                return found
            asked["before"] = following
        raise NotThePlatform(f"{self._calls.who}: {path}: more than {_MOST_PAGES} pages", "see the platform")

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> Mapping[str, Any]:
        url = self._base.join(_BASE + path)
        if query:
            url = url.copy_merge_params(query)
        headers = self._headers if body is None else {**self._headers, "content-type": "application/json"}
        content = None if body is None else Body.of(json.dumps(body).encode())
        answer = await self._calls.send(method, url, lambda: headers, content, repeatable=repeatable)
        return answered_data(answer, self._calls, f"{method} {path}", _HINTS)

    def _rows(self, data: Mapping[str, Any], key: str, model: type[_Model]) -> list[_Model]:
        rows = data.get(key)
        if not isinstance(rows, list):
            raise NotThePlatform(
                f"{self._calls.who}: expected a list of {key}, found none", "see its version"
            )
        return [self._read(model, row) for row in rows]

    def _read(self, model: type[_Model], data: object, key: str | None = None) -> _Model:
        if key is not None and isinstance(data, dict):
            data = data.get(key)
        try:
            return model.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise NotThePlatform(
                f"{self._calls.who}: {model.__name__}: {field}: {first['msg']}", "see the platform's version"
            ) from None


@asynccontextmanager
async def open_actions(
    url: str,
    token: str,
    *,
    policy: Policy | None = None,
    ca_file: Path | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Actions]:
    """The actions of the platform at `url` (its root), as the owner of `token`. Raises UsageError."""
    base = check_url(url if url.endswith("/") else f"{url}/", "the platform's URL")
    secret = check_secret(token, "the platform's token")
    async with open_calls(base, (secret,), policy=policy, ca_file=ca_file, transport=transport) as calls:
        yield Actions(calls, base, secret)


def _publications(platform_id: str) -> str:
    return f"node_platforms/{_segment(platform_id)}/disk_image_publications"


def _segment(identifier: str) -> str:
    if not _IDENTIFIER.fullmatch(identifier):
        raise UsageError(
            f"expected an id of letters, digits, _ and -, found {identifier[:80]!r}",
            "name it by the id that the platform gave it",
        )
    return identifier
