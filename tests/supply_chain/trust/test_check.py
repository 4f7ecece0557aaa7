"""`trust check`: each answer that does not fit is explained, and none makes it hang or fail itself."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path

import anyio
import pytest

from pipelines.doctor import Check
from supply_chain.registry import Policy
from supply_chain.trust import check, init_embedded, load_trust
from supply_chain.trust.check import check_signing, check_trust
from supply_chain.trust.embedded import timestamper
from supply_chain.trust.embedded.answers import Answer, Request, as_json
from supply_chain.trust.embedded.create import served_at
from supply_chain.trust.embedded.services import Services
from supply_chain.trust.service_client import service_client
from tests.supply_chain.trust.instances import Answers, html, instance, status

ISSUER, AUTHORITY, LOG, TIMESTAMPER = (
    "identity issuer",
    "certificate authority",
    "transparency log",
    "timestamp authority",
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt."""
    monkeypatch.setattr(check, "service_client", partial(service_client, Policy(attempts=1)))


def asked(folder: Path, answers: Answers | None = None) -> dict[str, Check]:
    """The checks of an instance with these answers, by their names."""

    async def ask() -> list[Check]:
        async with instance(folder, answers) as trust:
            return await check_trust(trust)

    return {one.check: one for one in anyio.run(ask)}


def test_an_embedded_trust_is_fine(tmp_path: Path) -> None:
    init_embedded(tmp_path / "trust")
    checks = anyio.run(check_trust, load_trust(tmp_path / "trust"))
    assert [one.check for one in checks] == ["trusted root", ISSUER, AUTHORITY, LOG, TIMESTAMPER]
    assert all(one.ok for one in checks), checks
    entries = (tmp_path / "trust" / "private" / "ct" / "entries").read_bytes()
    assert entries == b""


def test_an_instance_is_fine(tmp_path: Path) -> None:
    checks = asked(tmp_path / "trust")
    assert len(checks) == 5
    assert all(one.ok for one in checks.values()), checks


def test_a_trust_to_verify_with_has_nobody_to_ask(tmp_path: Path) -> None:
    init_embedded(tmp_path / "trust")
    (found,) = anyio.run(check_trust, load_trust(tmp_path / "trust" / "trusted_root.json"))
    assert (found.check, found.ok) == ("trusted root", True)


def test_what_has_expired_is_named(tmp_path: Path) -> None:
    init_embedded(tmp_path / "trust")
    for part, kind in (
        ("certificateAuthorities", "certificate authority"),
        ("timestampAuthorities", "timestamp"),
    ):
        root = json.loads((tmp_path / "trust" / "trusted_root.json").read_text())
        root[part][0]["validFor"]["end"] = "2020-01-01T00:00:00Z"
        (tmp_path / "root.json").write_text(json.dumps(root))
        (found,) = anyio.run(check_trust, load_trust(tmp_path / "root.json"))
        assert not found.ok
        assert f"no {kind}" in found.found


def other(tmp_path: Path, path: str) -> Callable[[Request], Answer]:
    """What another trust's service answers."""
    folder = tmp_path / "other"
    if not folder.exists():
        init_embedded(folder)
    trust = load_trust(folder)
    assert trust.embedded is not None
    return lambda request: Services(trust, trust.embedded).answer(replace(request, path=path))  # type: ignore[arg-type]


PATHS = {
    ISSUER: "/.well-known/openid-configuration",
    AUTHORITY: "/api/v2/trustBundle",
    LOG: "/api/v2/checkpoint",
    TIMESTAMPER: "/api/v1/timestamp",
}


@pytest.mark.parametrize("service", PATHS)
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (html, "answers with"),
        (status(403), "answers HTTP 403"),
        (status(503), "HTTP 503"),
        (lambda _: Answer(302, b"", "text/plain"), "redirect"),
        (lambda _: as_json([1]), "answers with"),
        (lambda _: as_json({}), "answers with"),
        (lambda _: Answer(200, b"\xff" * 60_000, "application/octet-stream"), "answers with"),
    ],
)
def test_something_else_at_a_service_s_place_is_named(
    tmp_path: Path, service: str, answer: Callable[[Request], Answer], message: str
) -> None:
    checks = asked(tmp_path / "trust", {PATHS[service]: answer})
    assert [name for name, one in checks.items() if not one.ok] == [service]
    assert message in checks[service].found
    assert checks[service].to_do


def test_a_service_that_is_down_is_named(tmp_path: Path) -> None:
    init_embedded(tmp_path / "trust")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        trust = load_trust(tmp_path / "trust")
        port = taken.getsockname()[1]
        checks = anyio.run(
            check_trust, replace(trust, config=served_at(f"http://127.0.0.1:{port}"), embedded=None)
        )
    assert [one.ok for one in checks] == [True, False, False, False, False]
    assert all(f"127.0.0.1:{port}" in one.found and "reaches it" in one.to_do for one in checks[1:])


def test_a_service_that_says_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(attempts=1, connect_timeout=0.2, silence=0.2, slowest=1e9)
    monkeypatch.setattr(check, "service_client", partial(service_client, policy))
    init_embedded(tmp_path / "trust")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        trust = load_trust(tmp_path / "trust")
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        checks = anyio.run(check_trust, replace(trust, config=served_at(url), embedded=None))
    assert [one.ok for one in checks] == [True, False, False, False, False]


def test_an_authority_with_another_root(tmp_path: Path) -> None:
    checks = asked(tmp_path / "trust", {PATHS[AUTHORITY]: other(tmp_path, PATHS[AUTHORITY])})
    assert "its root is sha256:" in checks[AUTHORITY].found
    assert "trusted are sha256:" in checks[AUTHORITY].found


def test_an_authority_that_does_not_know_the_issuer(tmp_path: Path) -> None:
    configuration = {"issuers": [{"issuerUrl": "https://other.example", "audience": "sigstore"}]}
    checks = asked(tmp_path / "trust", {"/api/v2/configuration": lambda _: as_json(configuration)})
    assert "does not know the issuer http://127.0.0.1:" in checks[AUTHORITY].found
    assert "https://other.example" in checks[AUTHORITY].found
    assert "oidc-issuers" in checks[AUTHORITY].to_do


def test_a_log_with_another_key(tmp_path: Path) -> None:
    checks = asked(tmp_path / "trust", {PATHS[LOG]: other(tmp_path, PATHS[LOG])})
    assert "its checkpoint is not by the trusted key of log.disk-image.internal" in checks[LOG].found


def test_a_log_with_another_origin(tmp_path: Path) -> None:
    note = b"rekor.local\n1\nAAAA\n\n\xe2\x80\x94 rekor.local AAAAAAAA\n"
    checks = asked(tmp_path / "trust", {PATHS[LOG]: lambda _: Answer(200, note, "text/plain")})
    assert "its checkpoints are of 'rekor.local'" in checks[LOG].found
    assert "log.disk-image.internal" in checks[LOG].found


@pytest.mark.parametrize("code", [404, 501])
def test_a_log_may_serve_its_checkpoint_elsewhere(tmp_path: Path, code: int) -> None:
    answers: Answers = {PATHS[LOG]: status(code), "/healthz": lambda _: as_json({"status": "SERVING"})}
    checks = asked(tmp_path / "trust", answers)
    assert checks[LOG].ok
    assert "its key not seen" in checks[LOG].found
    assert not asked(tmp_path / "trust", {PATHS[LOG]: status(code)})[LOG].ok


def test_an_issuer_with_another_name(tmp_path: Path) -> None:
    discovery = {"issuer": "https://other.example", "jwks_uri": "http://127.0.0.1:1/"}

    def answer(request: Request) -> Answer:
        return as_json({**discovery, "jwks_uri": f"http://{request.headers['host']}/jwks"})

    checks = asked(tmp_path / "trust", {PATHS[ISSUER]: answer})
    assert "calls itself 'https://other.example', expected 'http://127.0.0.1:" in checks[ISSUER].found


def test_an_issuer_without_keys(tmp_path: Path) -> None:
    checks = asked(tmp_path / "trust", {"/jwks": lambda _: as_json({"keys": []})})
    assert "no keys at" in checks[ISSUER].found


def test_a_timestamper_of_another_trust(tmp_path: Path) -> None:
    checks = asked(tmp_path / "trust", {PATHS[TIMESTAMPER]: other(tmp_path, PATHS[TIMESTAMPER])})
    assert "its timestamp is by none of the 1 trusted authorities" in checks[TIMESTAMPER].found


@pytest.mark.parametrize(("hours", "side"), [(1, "behind"), (-1, "ahead of")])
def test_a_clock_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int, side: str
) -> None:
    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Shifted:
            return super().now(tz) + timedelta(hours=hours)

    monkeypatch.setattr(timestamper, "datetime", Shifted)
    found = asked(tmp_path / "trust")[TIMESTAMPER]
    assert not found.ok
    assert f"s {side} its" in found.found
    assert "timedatectl" in found.to_do


# signing


def test_signing_with_an_embedded_trust(tmp_path: Path) -> None:
    init_embedded(tmp_path / "trust")
    trust = load_trust(tmp_path / "trust")
    found = anyio.run(partial(check_signing, trust, {}, identity="builder@git.example"))
    assert found.ok, found
    assert "as builder@git.example, vouched for by http://127.0.0.1:9462" in found.found


def test_signing_without_a_token(tmp_path: Path) -> None:
    async def sign() -> Check:
        async with instance(tmp_path / "trust") as trust:
            return await check_signing(trust, {})

    found = anyio.run(sign)
    assert not found.ok
    assert "no identity token" in found.found


def test_an_authority_without_a_certificate_log(tmp_path: Path) -> None:
    """Fulcio that runs with --ct-log-url "" answers with a detached timestamp, which is none."""

    async def sign() -> Check:
        detached: dict[str, object] = {"signedCertificateDetachedSct": {"chain": {"certificates": []}}}
        answers = {"/api/v2/signingCert": lambda _: as_json(detached)}
        async with instance(tmp_path / "trust", answers) as trust:
            assert trust.config is not None
            issuer = trust.config.oidc_urls[0].url
            embedded = load_trust(tmp_path / "trust").embedded
            assert embedded is not None
            token = replace(embedded, issuer=issuer).issue_token()
            return await check_signing(trust, {"DISK_IMAGE_IDENTITY_TOKEN": token})

    found = anyio.run(sign)
    assert not found.ok
    assert "certificate" in found.found
