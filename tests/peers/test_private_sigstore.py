"""Signing with a private Sigstore of the real services."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.private_sigstore import PrivateSigstore, private_sigstore
from tests.system.command import disk_image

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSigstore]:
    """All of them, running."""
    with private_sigstore(tmp_path_factory.mktemp("sigstore")) as running:
        yield running


@pytest.fixture(scope="module")
def trust(services: PrivateSigstore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trust in them, made by the command."""
    folder = tmp_path_factory.mktemp("trust") / "trust"
    done = disk_image("trust", "init", folder, *services.init, prefix=services.network)
    assert done.returncode == 0, done.stderr
    return folder


def test_each_service_answers(services: PrivateSigstore, trust: Path) -> None:
    done = disk_image("trust", "check", trust, "--json", prefix=services.network)
    assert done.returncode == 0, done.stderr + done.stdout
    checks = json.loads(done.stdout)["checks"]
    assert checks
    assert all(check["ok"] for check in checks)
