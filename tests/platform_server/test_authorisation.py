"""Every route of the API: no token, an unknown one, a missing permission, another account's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from platform_server import secret_pickups
from platform_server.accounts import user_token
from platform_server.api import PREFIX
from platform_server.app import create_app
from platform_server.permissions import Permission
from platform_server.state_folder import Platform
from platform_server.tables import Publication
from platform_server.tokens import authenticate
from tests.platform_server.api import Api, Pipeline
from tests.platform_server.clock import Clock
from tests.platform_server.rows import approval_request

IDS = (
    "platform_id",
    "publication_id",
    "webhook_id",
    "worker_id",
    "instance_id",
    "secret_id",
    "agent_id",
    "request_id",
)
NOBODY = "00000000-0000-7000-8000-000000000000"
# Who may call these is not decided by a token.
OPEN = {
    "/healthz",
    "/readyz",
    f"{PREFIX}/webhooks/disk_image/built/{{webhook_id}}",
    f"{PREFIX}/uploads/{{publication_id}}",
}
# Bodies that are right, for routes that need one; `{…}` is the id of something that is there.
BODIES: Mapping[str, Any] = {
    "PATCH /node_platforms/{platform_id}": {"node_platform": {"description": "theirs"}},
    "PATCH /disk_image_webhooks/{webhook_id}": {"status": "disabled"},
    "POST /worker_api/disk_image_publications/process": {"publication_id": "{publication_id}"},
    "POST /worker_api/disk_image_publications/finalize": {
        "publication_id": "{publication_id}",
        "sha256_verify": "0" * 64,
    },
    "POST /worker_api/disk_image_publications/sweep_retention": {"platform_id": "{platform_id}"},
    "POST /actions/system_set_default_disk_image_publication": {"publication_id": "{publication_id}"},
    "POST /actions/system_rollback_disk_image": {"node_platform_id": "{platform_id}"},
    "POST /actions/system_set_disk_image_retention": {
        "node_platform_id": "{platform_id}",
        "retention_count": 1,
    },
    "POST /actions/system_terminate_ci_worker": {"worker_id": "{worker_id}"},
    "POST /actions/agent_introspect": {"agent_id": "{agent_id}"},
    "POST /actions/pause_agent": {"agent_id": "{agent_id}"},
    "POST /actions/resume_agent": {"agent_id": "{agent_id}"},
    "POST /actions/approve_request": {"approval_request_id": "{request_id}"},
    "POST /actions/reject_request": {"approval_request_id": "{request_id}"},
}


def _routes(platform: Platform) -> Iterator[tuple[str, str, Permission]]:
    schema = create_app(platform).openapi()
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            if path not in OPEN:
                yield method.upper(), path, Permission(operation["x-permission"])


def _target(path: str, ids: Mapping[str, str]) -> str:
    target = path.removeprefix(PREFIX)
    for name, identifier in ids.items():
        target = target.replace(f"{{{name}}}", identifier)
    return target


def _token(platform: Platform, clock: Clock, permissions: list[Permission]) -> str:
    return platform.database.write_now(lambda on: user_token(on, "default", "almost", permissions, clock()))


def _secret(platform: Platform, api: Api, clock: Clock) -> str:
    def keep(session: Session) -> str:
        caller = authenticate(session, api.token)
        made_by = ("provision_disk_image_webhook", "webhook_secret")
        return str(
            secret_pickups.keep(
                session, caller, platform.sealer, "s", made_by, clock(), timedelta(minutes=1)
            ).id
        )

    return platform.database.write_now(keep)


def test_every_route_asks_for_a_token_and_a_permission(
    api: Api, platform: Platform, clock: Clock, subtests: pytest.Subtests
) -> None:
    routes = list(_routes(platform))
    assert len(routes) > 10
    for method, path, permission in routes:
        target = _target(path, dict.fromkeys(IDS, NOBODY))
        others = sorted(set(Permission) - {permission})
        almost = _token(platform, clock, others)
        with subtests.test(f"{method} {path}"):
            for token in (None, "nonsense", "pnu_unknown", "swt_unknown"):
                api.with_token(token).error(401, method, target, json={} if method != "GET" else None)
            error = api.with_token(almost).error(403, method, target, json={} if method != "GET" else None)
            assert permission in error


def test_every_route_about_one_thing_is_of_its_account_alone(
    api: Api,
    other: Api,
    platform: Platform,
    clock: Clock,
    pipeline: Pipeline,
    platform_id: str,
    subtests: pytest.Subtests,
) -> None:
    ids = {
        "platform_id": platform_id,
        "publication_id": pipeline.plain().json()["publication_id"],
        "webhook_id": pipeline.webhook_id,
        "worker_id": api.post("/ci_workers", {"name": "runner"})["ci_worker"]["id"],
        "secret_id": _secret(platform, api, clock),
        "agent_id": api.get("/agents")["agents"][0]["id"],
    }
    ids["request_id"] = platform.database.write_now(
        lambda on: str(
            approval_request(on, platform.clock(), on.get_one(Publication, UUID(ids["publication_id"]))).id
        )
    )
    there = [
        f"/node_platforms/{platform_id}",
        f"/node_platforms/{platform_id}/disk_image_publications/{ids['publication_id']}",
        f"/disk_image_webhooks/{pipeline.webhook_id}",
        f"/ci_workers/{ids['worker_id']}",
        f"/agents/{ids['agent_id']}",
        f"/approval_requests/{ids['request_id']}",
    ]
    before = [api.get(path) for path in there]
    asked = 0
    for method, path, _ in _routes(platform):
        route = f"{method} {path.removeprefix(PREFIX)}"
        if "{" not in path and route not in BODIES:
            continue
        asked += 1
        body = json.loads(_target(json.dumps(BODIES[route]), ids)) if route in BODIES else None
        with subtests.test(route):
            other.error(404, method, _target(path, ids), json=body)
    assert asked > len(BODIES)
    assert [api.get(path) for path in there] == before
