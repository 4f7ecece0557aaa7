"""A built image, a trust, a registry and a platform's webhook, all on loopback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from platform_client.settings import WEBHOOK_SECRETS, WEBHOOK_URLS, webhook_settings
from supply_chain.layout import Layout
from supply_chain.publish.publish import Registry, Signing, Telling, publish
from supply_chain.publish.steps import Published
from supply_chain.reference import parse_reference
from supply_chain.registry import Policy
from supply_chain.trust import Trust, init_embedded, load_trust
from supply_chain.trust.embedded.log_file import LogFile
from supply_chain.trust.embedded.private import PRIVATE
from tests.platform_client.webhook_server import WebhookServer, webhook_server
from tests.supply_chain.publish.builds import built
from tests.supply_chain.registry_server import RegistryServer

SLUG = "debian-minimal"


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    """An embedded trust of this test alone, so that its log shows what was signed."""
    init_embedded(tmp_path / "trust")
    return load_trust(tmp_path / "trust")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A built image, not signed."""
    return built(tmp_path / "image")


@pytest.fixture
def platform() -> Iterator[WebhookServer]:
    """A webhook that takes what is signed."""
    with webhook_server() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No webhook and no identity of whoever runs the tests."""
    for name in (*WEBHOOK_URLS, *WEBHOOK_SECRETS, "DISK_IMAGE_IDENTITY_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class Publisher:
    """Publishes with bounds under which no test waits, and remembers what was reported."""

    layout: Layout
    trust: Trust
    registry: RegistryServer
    platform: WebhookServer
    policy: Policy
    reported: list[str]
    tag: str = "13"

    @property
    def ref(self) -> str:
        return f"{self.registry.host}/os/debian:{self.tag}"

    async def run(
        self,
        *,
        identity: str | None = None,
        environment: Mapping[str, str] | None = None,
        slug: str | None = SLUG,
        git_sha: str | None = None,
    ) -> Published:
        """One `disk-image publish`."""
        telling = None
        if slug is not None:
            webhook = webhook_settings(self.platform.environment())
            telling = Telling(webhook, slug, git_sha, policy=self.policy)
        how = Signing(self.trust, environment or {}, identity=identity, policy=self.policy)
        registry = Registry(plain_http=True, policy=self.policy)
        return await publish(
            self.layout.folder,
            parse_reference(self.ref),
            how,
            registry,
            telling,
            report=self.reported.append,
        )

    def __call__(self, **options: object) -> Published:
        return anyio.run(lambda: self.run(**options))  # type: ignore[arg-type]

    @property
    def log_entries(self) -> int:
        """How often the transparency log was asked to take something."""
        return entries(self.trust.path)

    @property
    def deliveries(self) -> Sequence[str]:
        """The ids that the platform was told under, in their order."""
        return [one.headers["webhook-id"] for one in self.platform.seen]


def entries(trust: Path) -> int:
    """The entries of an embedded trust's log, but for the first, which is its own."""
    return LogFile(trust / PRIVATE / "log").head().tree_size - 1


@pytest.fixture
def publisher(
    layout: Layout, trust: Trust, server: RegistryServer, platform: WebhookServer, policy: Policy
) -> Publisher:
    """Registry and platform are up."""
    return Publisher(layout, trust, server, platform, policy, [])
