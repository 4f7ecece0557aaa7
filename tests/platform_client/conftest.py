"""A webhook on loopback, and bounds under which no test waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from platform_client.settings import WEBHOOK_SECRETS, WEBHOOK_URLS, Webhook, webhook_settings
from supply_chain.registry import Policy
from tests.platform_client.webhook_server import WebhookServer, webhook_server
from tests.waits import Waits


@pytest.fixture
def server() -> Iterator[WebhookServer]:
    """A webhook that takes what is signed."""
    with webhook_server() as running:
        yield running


@pytest.fixture
def webhook(server: WebhookServer) -> Webhook:
    """The same, as a pipeline knows it."""
    return webhook_settings(server.environment())


@pytest.fixture
def policy(waits: Waits) -> Policy:
    """A short silence, no waiting between attempts."""
    return Policy(
        attempts=4,
        silence=0.3,
        connect_timeout=0.5,
        slowest=10_000_000,
        patience=30.0,
        sleep=waits,
        jitter=lambda: 1.0,
    )


@pytest.fixture(autouse=True)
def no_webhook_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No webhook of whoever runs the tests."""
    for name in (*WEBHOOK_URLS, *WEBHOOK_SECRETS):
        monkeypatch.delenv(name, raising=False)
