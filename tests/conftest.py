"""Which tests this machine can run, and which of them side by side.

Each marker has one requirement, and a test that is skipped says which one is missing.

With `-n NUMBER`, as `make test` runs them, that many processes share the tests file by file, so that what a
file or a session makes is made once in each. Those that build on the machine itself (see `ALONE`) stay
together: one process takes them first and in order, while the others go through the files.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from hypothesis import HealthCheck, settings

from tests.postgres_server import programs
from tests.waits import Waits

END = "-----END CERTIFICATE-----"

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


# Whatever has one of these marks or fixtures builds on the machine itself: it shares the store that stays
# between runs, a throwaway user and the lines of /etc/subuid, looks for processes in all of /proc, or keeps
# every processor busy. It is in one of these folders or files.
ALONE = frozenset({"sandbox", "boot", "kernel", "engine", "warm_store"})
ALONE_IN = (
    "tests/boot/",
    "tests/docs/test_tutorial.py",
    "tests/engine/",
    "tests/peers/test_built_image.py",
    "tests/peers/test_composefs_agreement.py",
    "tests/peers/test_composefs_differences.py",
    "tests/peers/test_metadata_reader.py",
    "tests/pipelines/test_sandbox.py",
    "tests/stages/test_kernel_source.py",
    "tests/system/",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, the longest group comes first."""
    for item in items:
        names = {mark.name for mark in item.iter_markers()} | {*getattr(item, "fixturenames", ())}
        if names & ALONE and not item.nodeid.startswith(ALONE_IN):
            raise pytest.UsageError(
                f"{item.nodeid}: builds on the machine itself ({', '.join(names & ALONE)}), and is not in "
                "ALONE_IN (tests/conftest.py), which says what is not run side by side"
            )
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(ALONE_IN))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A process takes a whole file, and one of them all that are in ALONE_IN."""
    # not `--dist loadgroup`: with pytest 9.2 it groups nothing (pytest-xdist's issue 1386)
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "the machine" if nodeid.startswith(ALONE_IN) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # by the number of tests, the longest would not come first
    return ByFile(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose marker's requirement this machine lacks, with the reason."""
    for name, requirement in REQUIREMENTS.items():
        if item.get_closest_marker(name) is not None and (reason := requirement()) is not None:
            pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """HTTP clients trust one public authority instead of all: reading them takes longer than most tests, and
    whom tests speak TLS with has a certificate of their own.
    """
    everyone = Path(certifi.where()).read_text()
    path = tmp_path_factory.mktemp("authorities") / "one.pem"
    path.write_text(everyone[: everyone.index(END) + len(END)] + "\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(certifi, "where", lambda: str(path))
        yield


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
