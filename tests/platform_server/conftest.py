"""A platform in a folder of its own, with a clock that tests set, on each of the databases.

Whatever depends on what is stored is tested on both: rows, transactions, queries, migrations, backups,
claims, kills. A module or a test whose subject is in front of that (a protocol, a socket, TLS, what a
registry is asked and answers) says so with the mark `one_database`, and has SQLite alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal
from uuid import UUID

import anyio
import httpx
import pytest

from platform_server import registries, sweeps, upload_files
from platform_server.accounts import user_token
from platform_server.manager import tick
from platform_server.settings import Registries, Settings
from platform_server.state_folder import Platform, initialise
from supply_chain.registry import Policy
from supply_chain.trust import init_embedded, load_trust
from tests.platform_server.api import Api, Pipeline
from tests.platform_server.clock import START, Clock
from tests.platform_server.images import Images
from tests.platform_server.killing import Kill, killing
from tests.platform_server.made import Made as Made
from tests.platform_server.made import OnPostgres
from tests.platform_server.published import Publish
from tests.platform_server.serving import serving
from tests.platform_server.verifying import Trial
from tests.platform_server.verifying import trial as make_trial
from tests.postgres_server import PostgresServer, postgres_server
from tests.supply_chain.registry_server import registry
from tests.supply_chain.verify.forge import Forge

DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def made_on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A new platform, of which each test gets a copy."""
    folder = tmp_path_factory.mktemp("platform") / "state"
    return Made(folder, initialise(folder, START))


@pytest.fixture(scope="session")
def made_on_postgres(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same with its database on PostgreSQL."""
    folder = tmp_path_factory.mktemp("platform") / "state"
    elsewhere = OnPostgres(postgres, postgres.create())
    return Made(folder, initialise(folder, START, elsewhere.url), elsewhere)


@pytest.fixture
def made_elsewhere(postgres: PostgresServer, made_on_postgres: Made, tmp_path: Path) -> Iterator[Made]:
    """A new platform on PostgreSQL for one test."""
    assert made_on_postgres.elsewhere is not None
    folder = tmp_path / "state"
    shutil.copytree(made_on_postgres.folder, folder)
    name = postgres.create(made_on_postgres.elsewhere.name)
    yield Made(folder, made_on_postgres.admin_token, OnPostgres(postgres, name))
    postgres.drop(name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """On which databases a test is done."""
    databases = DATABASES[:1] if metafunc.definition.get_closest_marker("one_database") else DATABASES
    scopes: dict[str, Literal["function", "module"]] = {"made": "function", "made_for_module": "module"}
    for name, scope in scopes.items():
        if name in metafunc.fixturenames and not _says_itself(metafunc, name):
            metafunc.parametrize(name, databases, indirect=True, scope=scope)


def _says_itself(metafunc: pytest.Metafunc, name: str) -> bool:
    return any(mark.args[0] == name for mark in metafunc.definition.iter_markers("parametrize"))


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """A new platform for one test, on each of the databases."""
    if request.param == "postgres":
        elsewhere: Made = request.getfixturevalue("made_elsewhere")
        return elsewhere
    once: Made = request.getfixturevalue("made_on_sqlite")
    return once.copied(tmp_path / "state")


@pytest.fixture(scope="module")
def made_for_module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One for all tests of a module, on each of the databases."""
    once: Made = request.getfixturevalue(f"made_on_{request.param}")
    return once.copied(tmp_path_factory.mktemp("platform") / "state")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings() -> Settings:
    """What a test module may replace: here nothing is verified, so that rows stay as they were sent."""
    return Settings(workers=0, registries=Registries(plain_http=True))


@pytest.fixture
def platform(made: Made, clock: Clock, settings: Settings) -> Iterator[Platform]:
    """The platform, open."""
    opened = made.open(settings, clock)
    yield opened
    opened.database.close()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps and the manager's turns happen when a test asks for them, and not while it looks at something
    else; a served process has its own.
    """

    async def forever(platform: Platform) -> None:
        await anyio.sleep_forever()

    for module, name in ((sweeps, "run"), (tick, "run"), (upload_files, "sweep_always")):
        monkeypatch.setattr(module, name, forever)


@pytest.fixture
def in_service(platform: Platform) -> Iterator[ExitStack]:
    """The platform's server, once there is a client. Whoever needs the database for himself closes it, and
    the platform's database after it: what runs beside the answers uses it at any time.
    """
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def client(platform: Platform, in_service: ExitStack) -> httpx.Client:
    """HTTP to the platform, which is served for as long as the test runs."""
    host, port = in_service.enter_context(serving(platform))
    base = f"http://{host}:{port}"
    limits = httpx.Limits(max_connections=200)
    return in_service.enter_context(httpx.Client(base_url=base, trust_env=False, timeout=60, limits=limits))


@pytest.fixture
def api(client: httpx.Client, made: Made) -> Api:
    """REST as the administrator."""
    return Api(client, made.admin_token)


@pytest.fixture
def other(api: Api, platform: Platform, clock: Clock) -> Api:
    """REST as the administrator of another account."""
    token = platform.database.write_now(lambda on: user_token(on, "other", "admin", ["*"], clock()))
    return api.with_token(token)


@pytest.fixture
def platform_id(api: Api) -> str:
    """The node platform `debian`."""
    created: str = api.post("/node_platforms", {"node_platform": {"name": "debian"}})["id"]
    return created


@pytest.fixture
def publish(platform: Platform, platform_id: str, clock: Clock) -> Publish:
    """Makes publications of the node platform `debian`."""
    return Publish(platform, UUID(platform_id), clock)


@pytest.fixture
def pipeline(api: Api, clock: Clock, platform_id: str) -> Pipeline:
    """A pipeline with a webhook, for the node platform `debian`."""
    made = api.post("/disk_image_webhooks", {"label": "pipeline"})
    return Pipeline(api.client, clock, made["webhook_id"], made["webhook_secret"])


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """The signer whom node platforms trust."""
    folder = tmp_path_factory.mktemp("trust") / "trust"
    init_embedded(folder)
    return Forge(load_trust(folder))


@pytest.fixture
def images(forge: Forge) -> Iterator[Images]:
    """A registry on loopback, and what pushes signed images to it."""
    with registry() as server:
        yield Images(server, forge)


@pytest.fixture
def trial(platform: Platform, images: Images, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """The platform with real verification; registries are asked again at once."""
    fast = Policy(attempts=2, silence=5.0, connect_timeout=5.0, sleep=_at_once, jitter=lambda: 0.0)
    monkeypatch.setattr(registries, "POLICY", fast)
    return make_trial(platform, images)


async def _at_once(seconds: float) -> None:
    """No waiting."""


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Waits until something holds, as long as a busy machine needs."""

    def wait(holds: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < until, "it never held"
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="module")
def kill() -> Iterator[Kill]:
    """Does one thing to a platform's state in a process that is killed at a chosen moment."""
    with killing() as order:
        yield order
