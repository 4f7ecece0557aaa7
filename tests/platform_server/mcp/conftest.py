"""A platform that serves at its own URL, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from platform_server.accounts import user_token
from platform_server.state_folder import Platform
from tests.platform_server.api import Api
from tests.platform_server.made import Made
from tests.platform_server.serving import serving


@dataclass(frozen=True)
class Served:
    """The platform, its URL and its administrator's token."""

    platform: Platform
    url: str
    token: str

    def token_of(self, user: str, *permissions: str, account: str = "default") -> str:
        """Another token."""
        return self.platform.database.write_now(
            lambda on: user_token(on, account, user, permissions, self.platform.clock())
        )

    def post(self, path: str, token: str, **options: object) -> httpx.Response:
        """A request, with REST's envelope or without."""
        return httpx.post(
            f"{self.url}{path}",
            headers={"authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=60,
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture
def served(made: Made, platform: Platform) -> Iterator[Served]:
    with serving(platform, public=True) as (host, port):
        yield Served(platform, f"http://{host}:{port}", made.admin_token)


@pytest.fixture
def rest(served: Served) -> Iterator[Api]:
    """REST as the administrator."""
    with httpx.Client(base_url=served.url, trust_env=False, timeout=60) as client:
        yield Api(client, served.token)
