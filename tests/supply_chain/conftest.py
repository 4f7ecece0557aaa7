"""A registry and an embedded trust on loopback, and bounds under which no test waits."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from anyio.from_thread import start_blocking_portal

from supply_chain.registry import Policy
from supply_chain.trust import Trust, init_embedded, load_trust, running
from tests.supply_chain.registry_server import RegistryServer, registry
from tests.waits import Waits


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    """An empty registry."""
    with registry() as running:
        yield running


@pytest.fixture(scope="session")
def embedded_trust(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trust]:
    """An embedded trust, whose services run for the whole session."""
    folder = tmp_path_factory.mktemp("trust") / "trust"
    init_embedded(folder)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running(load_trust(folder))) as trust,
    ):
        yield trust


@pytest.fixture
def policy(waits: Waits) -> Policy:
    """Small chunks, a short silence, no waiting between attempts."""
    return Policy(
        attempts=4,
        silence=1.0,
        connect_timeout=2.0,
        slowest=100_000,
        chunk=64 * 1024,
        sleep=waits,
        jitter=lambda: 1.0,
    )


@pytest.fixture(autouse=True)
def no_credentials_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No login of whoever runs the tests."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All of every library's log, down to its last detail."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog
