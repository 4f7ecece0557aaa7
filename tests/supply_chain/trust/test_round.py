"""Unmodified sigstore-python signs and verifies with an embedded trust."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from cryptography import x509
from sigstore.errors import VerificationError
from sigstore.models import Bundle

from supply_chain.errors import TokenError
from supply_chain.trust import Trust, init_embedded, load_trust, running
from tests.supply_chain.trust.clients import sign, verify


@pytest.mark.parametrize("identity", [None, "builder@git.example", "https://git.example/org/images"])
def test_what_is_signed_verifies(embedded_trust: Trust, identity: str | None) -> None:
    bundle = sign(embedded_trust, b"an image", identity)
    verify(embedded_trust, b"an image", bundle, identity)


def test_the_bundle_survives_its_json(embedded_trust: Trust) -> None:
    verify(embedded_trust, b"an image", Bundle.from_json(sign(embedded_trust, b"an image").to_json()))


def test_other_bytes_are_refused(embedded_trust: Trust) -> None:
    with pytest.raises(VerificationError):
        verify(embedded_trust, b"another image", sign(embedded_trust, b"an image"))


def test_another_identity_is_refused(embedded_trust: Trust) -> None:
    bundle = sign(embedded_trust, b"an image", "mallory@git.example")
    with pytest.raises(VerificationError):
        verify(embedded_trust, b"an image", bundle, "builder@git.example")


def test_another_trust_refuses_the_signature(embedded_trust: Trust, tmp_path: Path) -> None:
    init_embedded(tmp_path / "other")
    other = load_trust(tmp_path / "other")
    with pytest.raises(VerificationError):
        verify(other, b"an image", sign(embedded_trust, b"an image"))


def test_the_certificate_names_who_signed_and_who_vouches(embedded_trust: Trust) -> None:
    certificate = sign(embedded_trust, b"an image", "https://git.example/org").signing_certificate
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == ["https://git.example/org"]
    issuer = "http://127.0.0.1:9462"
    for oid, value in (("1", issuer.encode()), ("8", b"\x0c" + bytes([len(issuer)]) + issuer.encode())):
        found = certificate.extensions.get_extension_for_oid(
            x509.ObjectIdentifier(f"1.3.6.1.4.1.57264.1.{oid}")
        )
        assert isinstance(found.value, x509.UnrecognizedExtension)
        assert found.value.value == value


@pytest.mark.parametrize(
    "identity", ["", "nobody", "a@b\nc", "javascript:alert(1)", "x" * 1025 + "@git.example"]
)
def test_who_is_nobody_gets_no_token(embedded_trust: Trust, identity: str) -> None:
    assert embedded_trust.embedded is not None
    with pytest.raises(TokenError, match="neither an email address nor an absolute URI"):
        embedded_trust.embedded.issue_token(identity)


def test_the_log_grows_over_runs_at_other_ports(tmp_path: Path) -> None:
    init_embedded(tmp_path / "trust")

    async def once(content: bytes) -> tuple[str, Bundle]:
        async with running(load_trust(tmp_path / "trust")) as trust:
            assert trust.config is not None
            return trust.config.ca_urls[0].url, await anyio.to_thread.run_sync(sign, trust, content)

    (first_url, first), (second_url, second) = anyio.run(once, b"one"), anyio.run(once, b"two")
    assert first_url.startswith("http://127.0.0.1:")
    assert second_url.startswith("http://127.0.0.1:")
    assert [one.log_entry._inner.log_index for one in (first, second)] == [1, 2]
    trust = load_trust(tmp_path / "trust")
    verify(trust, b"one", first)
    verify(trust, b"two", second)
