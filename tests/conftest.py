"""Which tests this machine can run: each marker has one requirement, and a test that is skipped says
which one is missing.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres_server import programs
from tests.waits import Waits

# A busy machine makes one example slow now and then; nothing here is about speed.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def _sandbox() -> str | None:
    if shutil.which("runc", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        return "runc is not installed"
    return None


def _network() -> str | None:
    from pipelines.archive import archives
    from pipelines.errors import DiskImageError

    try:
        archives(())
    except DiskImageError as error:
        return f"no Debian archive: {error}"
    return None


def _engine() -> str | None:
    cli = os.environ.get("_EXPERIMENTAL_DAGGER_CLI_BIN") or shutil.which("dagger")
    if cli is None:
        return "no Dagger CLI on PATH (or in _EXPERIMENTAL_DAGGER_CLI_BIN)"
    try:
        answer = subprocess.run(
            [cli, "-M", "query", "-s"], input="{version}", capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return "no Dagger engine answered within 60 s"
    return None if answer.returncode == 0 else f"no Dagger engine answered: {answer.stderr.strip()[-200:]}"


def _postgres() -> str | None:
    return None if programs() else "no PostgreSQL: apt-get install postgresql, or make test unpacks it"


REQUIREMENTS: dict[str, Callable[[], str | None]] = {
    "sandbox": functools.cache(_sandbox),
    "boot": functools.cache(_sandbox),
    "kernel": functools.cache(_sandbox),
    "network": functools.cache(_network),
    "engine": functools.cache(_engine),
    "postgres": functools.cache(_postgres),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose marker's requirement this machine lacks, with the reason."""
    for name, requirement in REQUIREMENTS.items():
        if item.get_closest_marker(name) is not None and (reason := requirement()) is not None:
            pytest.skip(reason)


@pytest.fixture
def waits() -> Waits:
    """What the policy of this test waited."""
    return Waits()


@pytest.fixture(scope="session")
def warm_store() -> Path:
    """A store that stays between runs, so that downloads and the source kernel are paid for once."""
    path = Path(os.environ.get("DISK_IMAGE_TEST_STORE", Path(__file__).parents[1] / "out" / "test-store"))
    path.mkdir(parents=True, exist_ok=True)
    return path
