"""Every route of the API: no token, an unknown one, a missing permission, a worker's and a user's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from platform_server.accounts import user_token
from platform_server.app import PREFIX, create_app
from platform_server.permissions import Permission
from platform_server.state_folder import Platform
from tests.platform_server.api import Api
from tests.platform_server.clock import Clock

NOBODY = "00000000-0000-7000-8000-000000000000"
# Who may call these is not decided by a token.
OPEN = {
    "/healthz",
    f"{PREFIX}/webhooks/disk_image/built/{{webhook_id}}",
    f"{PREFIX}/uploads/{{publication_id}}",
}


def _routes(platform: Platform) -> Iterator[tuple[str, str, Permission]]:
    schema = create_app(platform).openapi()
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            if path not in OPEN:
                yield method.upper(), path, Permission(operation["x-permission"])


def _token(platform: Platform, clock: Clock, permissions: list[Permission]) -> str:
    return platform.database.write_now(lambda on: user_token(on, "default", "almost", permissions, clock()))


def test_every_route_asks_for_a_token_and_a_permission(
    api: Api, platform: Platform, clock: Clock, subtests: pytest.Subtests
) -> None:
    routes = list(_routes(platform))
    assert len(routes) > 10
    for method, path, permission in routes:
        target = path.removeprefix(PREFIX)
        for name in ("platform_id", "publication_id", "webhook_id", "worker_id", "instance_id"):
            target = target.replace(f"{{{name}}}", NOBODY)
        others = sorted(set(Permission) - {permission})
        almost = _token(platform, clock, others)
        with subtests.test(f"{method} {path}"):
            for token in (None, "nonsense", "pnu_unknown", "swt_unknown"):
                api.with_token(token).error(401, method, target, json={} if method != "GET" else None)
            error = api.with_token(almost).error(403, method, target, json={} if method != "GET" else None)
            assert permission in error
