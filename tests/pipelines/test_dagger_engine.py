"""The SDK's session with an engine: here of a server that knows what `connected` asks, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anyio
import dagger
import pytest
from graphql import build_schema, graphql_sync

from pipelines.dagger_engine import VERSION, EngineError, connected
from tests.loopback import Handler, LoopbackServer, serving

SCHEMA = build_schema("type Query { version: String! }")


class _Session(LoopbackServer):
    version: str | None = VERSION


class _Handler(Handler):
    server: _Session

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.version is None:
            self.send_error(401)
            return
        found = graphql_sync(SCHEMA, asked["query"], {"version": self.server.version})
        answer = json.dumps(found.formatted).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Session]:
    """A session as `dagger run` names it to what it starts."""
    with serving(_Session(_Handler)) as server:
        monkeypatch.setenv("DAGGER_SESSION_PORT", str(server.server_address[1]))
        monkeypatch.setenv("DAGGER_SESSION_TOKEN", "a token")
        yield server


def _connect() -> None:
    async def connecting() -> None:
        async with connected():
            pass

    anyio.run(connecting)


def test_the_sdk_speaks_with_what_is_installed_beside_it(session: _Session) -> None:
    """MCP's SDK brings httpx2, which a newer gql would take, and could not use with dagger-io."""
    _connect()


def test_an_engine_of_another_version_is_refused(session: _Session) -> None:
    session.version = "v0.1.0"
    with pytest.raises(EngineError, match=rf"expected {VERSION}, found v0\.1\.0"):
        _connect()


def test_a_session_that_refuses_is_no_engine(session: _Session) -> None:
    session.version = None
    with pytest.raises(EngineError, match=r"no Dagger engine could be reached: .*401"):
        _connect()


def test_where_the_cli_did_its_part_the_sdks_words_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __init__(self, config: dagger.Config) -> None:
            assert config.log_output is not None
            config.log_output.write("3 : consuming /v1/metrics DONE [0.0s]\n")

        async def __aenter__(self) -> None:
            raise dagger.ClientError("the session's schema can't be read")

    monkeypatch.setenv("DAGGER_SESSION_PORT", "1")
    monkeypatch.setattr(dagger, "connection", Failing)
    with pytest.raises(EngineError, match="be reached: the session's schema can't be read"):
        _connect()
