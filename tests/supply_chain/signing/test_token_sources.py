"""Where the identity token comes from: the order, the forge's protocol, and what a forge does wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest

from pipelines.errors import UsageError
from supply_chain.errors import ServiceDown, SigningError, SupplyChainError, TokenError
from supply_chain.registry.retry import Policy
from supply_chain.signing.services import services
from supply_chain.signing.token_sources import identity_token
from supply_chain.signing.tokens import IdentityToken
from supply_chain.trust import Trust
from tests.supply_chain.registry_server import Fault, Planned
from tests.supply_chain.signing.faulty import LOGIN_PAGE, FaultyServer, Reply, serving
from tests.supply_chain.signing.jwt_texts import encoded, token
from tests.waits import Waits

BEARER = "c4n4ry-request-token"
FORGES = token(sub="the forge's")


@dataclass
class Forge:
    """A forge's token endpoint, answering `reply`."""

    server: FaultyServer
    query: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.server.url}/job/7/idtoken{self.query}",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": BEARER,
        }

    def answers(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.server.answer = lambda _: Reply(status, body, headers)


@pytest.fixture
def forge() -> Iterator[Forge]:
    with serving(lambda _: Reply(200, json.dumps({"count": 1, "value": FORGES}).encode())) as server:
        yield Forge(server)


@pytest.fixture
def elsewhere(embedded_trust: Trust) -> Trust:
    """A trust that is not embedded."""
    return replace(embedded_trust, embedded=None)


def get(
    trust: Trust,
    environment: Mapping[str, str],
    policy: Policy,
    *,
    file: Path | None = None,
    identity: str | None = None,
) -> IdentityToken:
    async def getting() -> IdentityToken:
        async with services(policy) as asking:
            return await identity_token(trust, asking, environment, file=file, identity=identity)

    return anyio.run(getting)


@contextmanager
def refused(kind: type[SupplyChainError], said: str) -> Iterator[None]:
    """An error of that kind, which holds no secret."""
    with pytest.raises(kind, match=said) as caught:
        yield
    shown = f"{caught.value.what} {caught.value.hint} {caught.value!r} {caught.value.__cause__!r}"
    assert "c4n4ry" not in shown
    assert all(part not in shown for part in FORGES.split("."))


def test_the_order(elsewhere: Trust, forge: Forge, policy: Policy, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token(sub="the file's") + "\n")
    environment = {
        "DISK_IMAGE_IDENTITY_TOKEN": token(sub="the given"),
        "SIGSTORE_ID_TOKEN": token(sub="the ambient"),
        **forge.environment,
    }
    assert get(elsewhere, environment, policy, file=file).claims.sub == "the file's"
    assert get(elsewhere, environment, policy).claims.sub == "the given"
    del environment["DISK_IMAGE_IDENTITY_TOKEN"]
    assert not forge.server.seen
    assert get(elsewhere, environment, policy).claims.sub == "the forge's"
    for name in forge.environment:
        environment[name] = ""
    assert get(elsewhere, environment, policy).claims.sub == "the ambient"
    del environment["SIGSTORE_ID_TOKEN"]
    with refused(TokenError, "no identity token: none of DISK_IMAGE_IDENTITY_TOKEN, ACTIONS_"):
        get(elsewhere, environment, policy)


def test_an_embedded_trust_passes_over_a_jobs_surroundings(
    embedded_trust: Trust, forge: Forge, policy: Policy
) -> None:
    assert embedded_trust.embedded is not None
    environment = {"SIGSTORE_ID_TOKEN": token(), **forge.environment}
    found = get(embedded_trust, environment, policy)
    assert (found.issuer, found.claims.sub) == (
        embedded_trust.embedded.issuer,
        embedded_trust.embedded.default_identity,
    )
    assert not forge.server.seen
    given = {**environment, "DISK_IMAGE_IDENTITY_TOKEN": embedded_trust.embedded.issue_token("me@localhost")}
    assert get(embedded_trust, given, policy).claims.sub == "me@localhost"
    assert get(embedded_trust, given, policy, identity="you@localhost").claims.sub == "you@localhost"


def test_two_words_for_who_signs_are_wrong_use(
    embedded_trust: Trust, elsewhere: Trust, policy: Policy, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--as and --identity-token-file: both say who signs"):
        get(embedded_trust, {}, policy, file=tmp_path / "token", identity="me@localhost")
    with pytest.raises(UsageError, match=r"--as me@localhost: .* is no embedded trust"):
        get(elsewhere, {}, policy, identity="me@localhost")


def test_a_file_that_can_not_be_read(elsewhere: Trust, policy: Policy, tmp_path: Path) -> None:
    with refused(TokenError, "token: No such file or directory"):
        get(elsewhere, {}, policy, file=tmp_path / "token")
    (tmp_path / "token").write_bytes(b"\xff" * 100_000)
    with refused(TokenError, "token gives is no identity token"):
        get(elsewhere, {}, policy, file=tmp_path / "token")


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("", "?audience=sigstore"),
        ("?", "?audience=sigstore"),
        ("?placeholder=true", "?placeholder=true&audience=sigstore"),
        ("?sig=a%2Bb%3D&api-version=2.0", "?sig=a%2Bb%3D&api-version=2.0&audience=sigstore"),
        ("?audience=https%3A%2F%2Fother&x=1", "?x=1&audience=sigstore"),
        ("?x=1#part", "?x=1&audience=sigstore"),
    ],
)
def test_the_audience_joins_whatever_query_there_is(
    query: str, asked: str, elsewhere: Trust, forge: Forge, policy: Policy
) -> None:
    forge.query = query
    assert get(elsewhere, forge.environment, policy).secret == FORGES
    (request,) = forge.server.seen
    assert (request.method, request.path) == ("GET", f"/job/7/idtoken{asked}")
    assert request.headers["authorization"] == f"Bearer {BEARER}"


@pytest.mark.parametrize("aud", ["sigstore", ["sigstore"]])
def test_audiences_as_forges_write_them(aud: object, elsewhere: Trust, forge: Forge, policy: Policy) -> None:
    forge.answers(json.dumps({"value": token(aud=aud)}).encode())
    assert get(elsewhere, forge.environment, policy).audiences == ("sigstore",)


@pytest.mark.parametrize("missing", ["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"])
def test_half_a_forge_is_named(missing: str, elsewhere: Trust, forge: Forge, policy: Policy) -> None:
    environment = {**forge.environment, missing: ""}
    with refused(TokenError, f"{missing} is not set, though the other half of it is"):
        get(elsewhere, environment, policy)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, LOGIN_PAGE, "gives no identity token: HTTP 403: an HTML or XML page"),
        (401, b'{"message":"no c4n4ry-request-token"}', "HTTP 401: no …"),
        (404, b"", "HTTP 404: nothing"),
        (200, LOGIN_PAGE, "expected a JSON object, found an HTML or XML page"),
        (200, b"", "expected a JSON object, found nothing"),
        (200, b'{"value":', "expected a JSON object"),
        (200, b'{"token": "x"}', "its answer has no text as `value`"),
        (200, b'{"value": null}', "its answer has no text as `value`"),
        (200, b'{"value": "not a c4n4ry token"}', "what the forge gives is no identity token"),
        (200, json.dumps({"value": encoded(b"{}")}).encode(), "expected the claim iss, found none"),
    ],
)
def test_a_forges_wrong_answers_are_told(
    status: int, body: bytes, said: str, elsewhere: Trust, forge: Forge, policy: Policy
) -> None:
    forge.answers(body, status)
    with refused(TokenError, said):
        get(elsewhere, forge.environment, policy)
    assert len(forge.server.seen) == 1


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_takes_the_bearer_nowhere(
    status: int, elsewhere: Trust, forge: Forge, policy: Policy
) -> None:
    with serving(lambda _: Reply(200)) as thief:
        forge.answers(b"", status, Location=f"{thief.url}/c4n4ry")
        with refused(SigningError, f"forge http://127.*: HTTP {status}, a redirect, which is not followed"):
            get(elsewhere, forge.environment, policy)
        assert not thief.seen


@pytest.mark.parametrize(
    "fault",
    [Fault.CUT_BEFORE, Fault.CUT_AFTER, Fault.CUT_IN_ANSWER, Fault.TOO_MANY, Fault.ERROR, Fault.BUSY],
)
def test_a_forge_that_fails_is_asked_again_and_not_for_ever(
    fault: Fault, elsewhere: Trust, forge: Forge, policy: Policy
) -> None:
    forge.server.faults = [Planned(fault, times=2)]
    assert get(elsewhere, forge.environment, policy).secret == FORGES
    assert len(forge.server.seen) == 3
    forge.server.faults = [Planned(fault, times=100)]
    with refused(ServiceDown, r"forge http://127.*idtoken: .*\(attempt 4, the last one\)"):
        get(elsewhere, forge.environment, policy)
    assert len(forge.server.seen) == 7


def test_a_forge_may_ask_for_patience_but_not_too_much(
    elsewhere: Trust, forge: Forge, policy: Policy, waits: Waits
) -> None:
    forge.server.faults, forge.server.retry_after = [Planned(Fault.BUSY)], "17"
    get(elsewhere, forge.environment, policy)
    assert waits.slept == [17]
    forge.server.faults, forge.server.retry_after = [Planned(Fault.BUSY)], "86400"
    with refused(ServiceDown, "HTTP 503, it asks to wait 86400"):
        get(elsewhere, forge.environment, policy)


def test_a_forge_that_trickles_ends_within_the_bounds(
    elsewhere: Trust, forge: Forge, policy: Policy
) -> None:
    forge.server.faults = [Planned(Fault.TRICKLE, times=100)]
    short = replace(policy, attempts=2, silence=0.3, connect_timeout=0.3)
    with refused(ServiceDown, "slower than allowed"):
        get(elsewhere, forge.environment, short)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://forge.example/idtoken?sig=c4n4ry", "expected https, found http"),
        ("https://me:c4n4ry@127.0.0.1:1/idtoken", "has no host, or a password in it"),
        ("https://", "has no host, or a password in it"),
        ("c4n4ry", "has no host, or a password in it"),
        ("https://[c4n4ry/", "is no URL"),
        ("https://127.0.0.1:c4n4ry/", "its URL is none"),
    ],
)
def test_a_wrong_url_is_refused_before_anything_is_sent(
    url: str, said: str, elsewhere: Trust, policy: Policy
) -> None:
    environment = {"ACTIONS_ID_TOKEN_REQUEST_URL": url, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": BEARER}
    with refused(SigningError, said):
        get(elsewhere, environment, policy)


@pytest.mark.parametrize("bearer", ["c4n4ry\r\nX-Evil: 1", "c4n4ry\x00", "c4n4ré"])
def test_a_bearer_that_is_no_header_is_refused(
    bearer: str, elsewhere: Trust, forge: Forge, policy: Policy
) -> None:
    environment = {**forge.environment, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": bearer}
    with refused(TokenError, "ACTIONS_ID_TOKEN_REQUEST_TOKEN has characters that no token has"):
        get(elsewhere, environment, policy)
    assert not forge.server.seen


def test_an_authority_of_ones_own_is_trusted_by_name(
    elsewhere: Trust, policy: Policy, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = Path(__file__).parents[1] / "tls"
    answer = Reply(200, json.dumps({"value": FORGES}).encode())
    with serving(lambda _: answer, (tls / "server.pem", tls / "server.key")) as server:
        forge = Forge(server)
        with refused(SigningError, "forge https://127.*: its certificate is not trusted"):
            get(elsewhere, forge.environment, policy)
        assert not waits.slept
        monkeypatch.setenv("SSL_CERT_FILE", str(tls / "ca.pem"))
        assert get(elsewhere, forge.environment, policy).secret == FORGES


def test_an_endless_answer_is_cut_off(elsewhere: Trust, forge: Forge, policy: Policy) -> None:
    forge.answers(b'{"value": "' + b"x" * (2 << 20))
    with refused(SigningError, "the answer has more than 1048576 bytes"):
        get(elsewhere, forge.environment, policy)


def test_a_token_without_a_workflow_is_taken(elsewhere: Trust, forge: Forge, policy: Policy) -> None:
    forge.answers(json.dumps({"value": token(workflow_ref=None)}).encode())
    assert get(elsewhere, forge.environment, policy).claims.workflow_ref is None
