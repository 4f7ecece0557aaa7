"""Tokens and what leads to them appear nowhere: canaries are planted, and everything is searched."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from supply_chain.errors import SupplyChainError
from supply_chain.trust.documents import client_trust_config
from supply_chain.trust.embedded.create import signing_config
from tests.supply_chain.registry_server import Fault
from tests.supply_chain.signing.faulty import Reply, Request
from tests.supply_chain.signing.jwt_texts import token
from tests.supply_chain.signing.through_proxy import AUTHORITY, IDENTITY, LOG, TIMESTAMPER, Behind

BEARER, QUERY = "c4n4ry-request-token", "c4n4ry-query"


def _echo(request: Request) -> Reply:
    """A service that repeats what it was sent in its refusal."""
    sent = request.headers.get("authorization", "")
    return Reply(400, json.dumps({"code": 3, "message": f"no {sent}, no {request.path}"}).encode())


def _well(behind: Behind) -> None:
    """Nothing goes wrong."""


def _refused(behind: Behind) -> None:
    behind.answers(AUTHORITY, _echo)


def _authority_down(behind: Behind) -> None:
    behind.goes_wrong(Fault.CUT_AFTER, AUTHORITY, times=1000)


def _garbage(behind: Behind) -> None:
    behind.answers(AUTHORITY, lambda request: Reply(201, json.dumps({**request.headers}).encode()))


def _certificate_of_the_token(behind: Behind) -> None:
    def answer(request: Request) -> Reply:
        chain = {"certificates": [request.headers["authorization"], "x"]}
        return Reply(201, json.dumps({"signedCertificateEmbeddedSct": {"chain": chain}}).encode())

    behind.answers(AUTHORITY, answer)


def _timestamper_down(behind: Behind) -> None:
    behind.goes_wrong(Fault.ERROR, TIMESTAMPER, times=1000)


def _log_refuses(behind: Behind) -> None:
    behind.answers(LOG, _echo)


def _forge_refuses(behind: Behind) -> None:
    behind.answers("/idtoken", _echo)


def _forge_down(behind: Behind) -> None:
    behind.goes_wrong(Fault.CUT_BEFORE, "/idtoken", times=1000)


def _forge_redirects(behind: Behind) -> None:
    elsewhere = f"https://elsewhere.example/?token={QUERY}"
    behind.answers("/idtoken", lambda _: Reply(302, headers={"Location": elsewhere}))


def _another_issuers(behind: Behind) -> None:
    behind.answers("/idtoken", lambda _: Reply(200, json.dumps({"value": token()}).encode()))


def _expired(behind: Behind) -> None:
    body = json.dumps({"value": token(exp=1, iat=None, nbf=None)}).encode()
    behind.answers("/idtoken", lambda _: Reply(200, body))


def _for_another(behind: Behind) -> None:
    body = json.dumps({"value": token(aud="someone")}).encode()
    behind.answers("/idtoken", lambda _: Reply(200, body))


def _no_token(behind: Behind) -> None:
    behind.answers("/idtoken", lambda _: Reply(200, json.dumps({"value": token()[:-90] + "."}).encode()))


CASES = [
    _well,
    _refused,
    _authority_down,
    _garbage,
    _certificate_of_the_token,
    _timestamper_down,
    _log_refuses,
    _forge_refuses,
    _forge_down,
    _forge_redirects,
    _another_issuers,
    _expired,
    _for_another,
    _no_token,
]


@pytest.fixture
def minted(behind: Behind) -> list[str]:
    """Secrets, as the forge gives them out; the forge is one more path at the proxy."""
    given: list[str] = [BEARER, QUERY]
    forward = behind.forward

    def forge(request: Request) -> Reply:
        if not request.path.startswith("/idtoken"):
            return forward(request)
        assert behind.embedded.embedded is not None
        given.append(behind.embedded.embedded.issue_token(IDENTITY))
        return Reply(200, json.dumps({"value": given[-1]}).encode())

    behind.forward = behind.proxy.answer = forge
    behind.environment.clear()
    behind.environment["ACTIONS_ID_TOKEN_REQUEST_URL"] = f"{behind.proxy.url}/idtoken?key={QUERY}"
    behind.environment["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] = BEARER
    return given


def search(shown: str, secrets: list[str]) -> None:
    """Fail when one of the secrets, a part of a token or its like in base64, is in `shown`."""
    assert "c4n4ry" not in shown
    for secret in [*secrets, token()]:
        parts = [part for part in secret.split(".") if len(part) > 12]
        # The header says nothing, and is the same for all.
        for part in parts[1:] or parts:
            for form in (part, part[:40], part[-40:], base64.b64encode(part.encode()).decode()[:40]):
                assert form not in shown


def everything(behind: Behind) -> str:
    """The layout and what is beside it."""
    return b"\n".join(behind.state().values()).decode(errors="replace")


@pytest.mark.parametrize("case", CASES)
def test_neither_errors_nor_logs_nor_the_layout_have_a_secret(
    case: Callable[[Behind], None],
    behind: Behind,
    minted: list[str],
    everything_logged: pytest.LogCaptureFixture,
) -> None:
    for name in ("sigstore", "requests", "urllib3", "anyio"):
        everything_logged.set_level(logging.DEBUG, logger=name)
    case(behind)
    try:
        behind.sign()
        shown = ""
    except SupplyChainError as error:
        shown = f"{error} {error!r} {error.what} {error.hint} {error.to_json()}"
        assert case is not _well
    assert len(behind.proxy.seen) > 0
    search(f"{shown} {everything_logged.text} {everything(behind)}", minted)


@pytest.mark.parametrize("case", [_well, _refused, _garbage, _another_issuers, _forge_refuses])
def test_the_command_shows_none_even_when_it_shows_all(
    case: Callable[[Behind], None], behind: Behind, minted: list[str], tmp_path: Path
) -> None:
    trust = tmp_path / "trust.json"
    root = json.loads((behind.embedded.path / "trusted_root.json").read_text())
    services = signing_config(behind.proxy.url, datetime.now(UTC))
    trust.write_text(json.dumps(client_trust_config(root, services)))
    case(behind)
    words = ["sign", str(behind.layout.folder), "--trust", str(trust), "--json", "--debug"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *words],
        env={**os.environ, **behind.environment, "PYTHONDEVMODE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == (0 if case is _well else 1), done.stderr
    assert case is _well or "Traceback" in done.stderr
    search(done.stdout + done.stderr + everything(behind), minted)
