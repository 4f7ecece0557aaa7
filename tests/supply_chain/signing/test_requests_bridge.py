"""requests, as sigstore-python uses it, over the services' own HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import anyio
import pytest
import requests

from supply_chain.errors import ServiceDown, SigningError
from supply_chain.registry.retry import Policy
from supply_chain.registry.wire import Answer
from supply_chain.signing.requests_bridge import Bridge
from supply_chain.signing.services import explanation, services
from tests.supply_chain.registry_server import Fault, Planned
from tests.supply_chain.signing.faulty import FaultyServer, Reply, Request, serving

ENTRY = b'{"24296fb24b8ad77a": {"body": "e30="}}'


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serving(lambda _: Reply(201, ENTRY, {"Content-Type": "application/json"})) as running:
        yield running


def ask(policy: Policy, use: Callable[[requests.Session], requests.Response]) -> requests.Response:
    """Use a session over the bridge in a thread, as signing does."""

    def refused(answer: Answer) -> SigningError:
        return SigningError(f"HTTP {answer.status}: {explanation(answer)}", "see its log")

    async def asking() -> requests.Response:
        async with services(policy) as found:

            def call() -> requests.Response:
                with requests.Session() as session:
                    session.headers["Accept"] = "application/json"
                    Bridge(found, "transparency log", refused).carry(session)
                    return use(session)

            return await anyio.to_thread.run_sync(call)

    return anyio.run(asking)


def test_a_request_and_its_answer_go_through(server: FaultyServer, policy: Policy) -> None:
    url = f"{server.url}/api/v1/log/entries"
    response = ask(policy, lambda session: session.post(url, json={"a": 1}, headers={"X-Else": "no"}))
    assert (response.status_code, response.content, response.url) == (201, ENTRY, url)
    assert response.json() == {"24296fb24b8ad77a": {"body": "e30="}}
    assert response.headers["content-type"] == "application/json"
    (seen,) = server.seen
    assert (seen.method, seen.body, seen.headers["accept"]) == ("POST", b'{"a": 1}', "application/json")
    assert seen.headers["content-type"] == "application/json"
    assert "x-else" not in seen.headers


def _log(location: str | None) -> Callable[[Request], Reply]:
    """A log that has the entry already, as Rekor 1 says it."""

    headers = {} if location is None else {"Location": location}
    there = Reply(409, b'{"code":409,"message":"an equivalent entry already exists"}', headers)

    def answer(request: Request) -> Reply:
        return Reply(200, ENTRY) if request.method == "GET" else there

    return answer


@pytest.mark.parametrize("location", ["/api/v1/log/entries/24296fb24b8ad77a", "entries/24296fb24b8ad77a"])
def test_an_entry_that_the_log_has_already_is_fetched(
    location: str, server: FaultyServer, policy: Policy
) -> None:
    server.answer = _log(location)
    response = ask(policy, lambda session: session.post(f"{server.url}/api/v1/log/entries", json={}))
    assert (response.status_code, response.content) == (200, ENTRY)
    assert [(one.method, one.path) for one in server.seen] == [
        ("POST", "/api/v1/log/entries"),
        ("GET", "/api/v1/log/entries/24296fb24b8ad77a"),
    ]


@pytest.mark.parametrize(
    "location", [None, "http://elsewhere.example/entry", "//elsewhere.example/entry", "file:///etc"]
)
def test_an_entry_elsewhere_is_not(location: str | None, server: FaultyServer, policy: Policy) -> None:
    server.answer = _log(location)
    with pytest.raises(SigningError, match="HTTP 409: an equivalent entry already exists"):
        ask(policy, lambda session: session.post(f"{server.url}/api/v1/log/entries", json={}))
    assert len(server.seen) == 1


def test_no_answer_is_no_exception_of_requests(server: FaultyServer, policy: Policy) -> None:
    server.faults = [Planned(Fault.CUT_BEFORE, times=100)]
    with pytest.raises(ServiceDown, match="transparency log http://127"):
        ask(policy, lambda session: session.get(server.url))
