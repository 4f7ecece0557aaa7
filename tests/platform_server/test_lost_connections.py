"""PostgreSQL goes away in the middle: nothing is done twice, nothing is lost, and nobody waits for ever."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import anyio
import pytest
from sqlalchemy import Connection, func, insert, select
from sqlalchemy.orm import Session

from platform_server import database as units
from platform_server.database import Database
from platform_server.errors import Unavailable
from platform_server.identifiers import new_id
from platform_server.tables import Account
from tests.platform_server.clock import START
from tests.platform_server.made import Made
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.postgres


class _Wire:
    """Between the platform and its database; cuts the connection at one COMMIT, before or after the server
    has got it.
    """

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.cut: str | None = None
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def has_cut(self) -> bool:
        return self.cut is None

    def close(self) -> None:
        """Every connection as well."""
        for each in [self._listening, *self._open]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._server)
                self._open += [client, server]
                answered = threading.Event()
                threading.Thread(target=self._forth, args=(client, server, answered), daemon=True).start()
                threading.Thread(target=self._back, args=(client, server, answered), daemon=True).start()

    def _forth(self, client: socket.socket, server: socket.socket, answered: threading.Event) -> None:
        with suppress(OSError):
            while sent := client.recv(65536):
                if self.cut is not None and b"COMMIT\0" in sent:
                    cut, self.cut = self.cut, None
                    client.shutdown(socket.SHUT_WR)
                    if cut == "after":
                        answered.clear()
                        server.sendall(sent)
                        assert answered.wait(10)
                    break
                server.sendall(sent)
        for each in (client, server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _back(self, client: socket.socket, server: socket.socket, answered: threading.Event) -> None:
        with suppress(OSError):
            while said := server.recv(65536):
                answered.set()
                client.sendall(said)


@pytest.fixture
def wire(postgres: PostgresServer) -> Iterator[_Wire]:
    made = _Wire(postgres.port)
    yield made
    made.close()


@contextmanager
def _over(wire: _Wire, made: Made) -> Iterator[Database]:
    assert made.elsewhere is not None
    url = made.elsewhere.server.loopback(made.elsewhere.name).replace(
        f":{made.elsewhere.server.port}/", f":{wire.port}/"
    )
    database = Database(f"{url}?sslmode=disable&gssencmode=disable")
    yield database
    database.close()


def _count(made: Made) -> int:
    platform = made.open()
    found = platform.database.read_now(lambda on: on.scalar(select(func.count(Account.id))))
    platform.database.close()
    return found or 0


def _alone(database: Database, runs: list[str]) -> None:
    def work(on: Session) -> Account:
        runs.append("run")
        account = Account(name="new", created_at=START)
        on.add(account)
        return account

    # it can be read, however the commit ended
    assert database.write_now(work).name == "new"


def _together(database: Database, runs: list[str]) -> None:
    def work(on: Connection, names: Sequence[str]) -> Sequence[str]:
        runs.append("run")
        on.execute(insert(Account), [{"id": new_id(), "name": each, "created_at": START} for each in names])
        return names

    async def write() -> str:
        return await database.write_together(work, "new")

    assert anyio.run(write) == "new"


@pytest.mark.parametrize("way", [_alone, _together])
@pytest.mark.parametrize(("cut", "expected"), [("before", 2), ("after", 1)])
def test_a_commit_whose_answer_was_lost_is_not_done_twice(
    wire: _Wire,
    made_elsewhere: Made,
    cut: str,
    expected: int,
    way: Callable[[Database, list[str]], None],
) -> None:
    """A second run after a commit would break the rule that names differ."""
    before, runs = _count(made_elsewhere), list[str]()
    with _over(wire, made_elsewhere) as database:
        # whoever connects first asks the server what it is, and commits
        database.write_now(lambda on: on.scalar(select(Account.id)))
        wire.cut = cut
        way(database, runs)
        assert wire.has_cut
    assert len(runs) == expected
    assert _count(made_elsewhere) == before + 1


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGQUIT])
def test_a_server_that_was_started_again_is_connected_to_again(
    postgres: PostgresServer, made_elsewhere: Made, ending: signal.Signals
) -> None:
    platform = made_elsewhere.open()
    count = select(func.count(Account.id))
    assert platform.database.read_now(lambda on: on.scalar(count)) == 1
    postgres.stop(ending)
    postgres.begin()
    assert platform.database.read_now(lambda on: on.scalar(count)) == 1
    postgres.stop(ending)
    postgres.begin()
    _alone(platform.database, [])
    assert platform.database.read_now(lambda on: on.scalar(count)) == 2
    platform.database.close()


def test_a_server_that_stays_away_is_said_to_and_comes_back(
    postgres: PostgresServer, made_elsewhere: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "_PATIENCE", 0.5)
    platform = made_elsewhere.open()
    postgres.stop(signal.SIGINT)
    try:
        with pytest.raises(Unavailable, match="does not answer"):
            _alone(platform.database, [])
        with pytest.raises(Unavailable, match="does not answer"):
            platform.database.read_now(lambda on: on.scalar(select(Account.id)))
    finally:
        postgres.begin()
    _alone(platform.database, [])
    platform.database.close()
