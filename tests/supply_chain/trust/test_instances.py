"""`trust init` for a private instance and for the public one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from pipelines.errors import UsageError
from supply_chain.errors import ServiceDown, SupplyChainError, TrustError
from supply_chain.trust import Trust, init_embedded, load_trust
from supply_chain.trust.certificates import pem
from supply_chain.trust.embedded.answers import Answer, Request, as_json
from supply_chain.trust.instances import Instance, init_instance, init_public
from tests.supply_chain.trust.clients import sign, verify
from tests.supply_chain.trust.instances import Answers, html, instance, status


def write_key(path: Path, key: PublicKeyTypes) -> Path:
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def described(trust: Trust, folder: Path) -> Instance:
    """What an administrator would give for the instance that `trust` is in."""
    assert trust.config is not None
    url = trust.config.ca_urls[0].url
    log, certificate_log = trust.root.tlogs[0], trust.root.ctlogs[0]
    return Instance(
        authority=f"{url}/",
        log=url,
        timestamper=trust.config.tsa_urls[0].url,
        issuer=url,
        log_key=write_key(folder / "log.pem", load_der_public_key(log.public_key.raw_bytes or b"")),
        certificate_log_key=write_key(
            folder / "ct.pem", load_der_public_key(certificate_log.public_key.raw_bytes or b"")
        ),
    )


def made(
    folder: Path,
    change: Callable[[Instance], Instance] = lambda given: given,
    answers: Answers | None = None,
) -> Trust:
    """The trust that `init` makes of an instance."""

    async def make() -> None:
        async with instance(folder / "services", answers) as trust:
            await init_instance(folder / "trust", change(described(trust, folder)))

    anyio.run(make)
    return load_trust(folder / "trust")


def chains(trust: Trust) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """The first authority's and the first timestamper's certificates."""
    authorities = trust.root.certificate_authorities[0], trust.root.timestamp_authorities[0]
    first, second = (
        [x509.load_der_x509_certificate(one.raw_bytes) for one in authority.cert_chain.certificates]
        for authority in authorities
    )
    return first, second


def test_an_instance_that_is_asked_for_its_chains(tmp_path: Path) -> None:
    trust = made(tmp_path)
    own = load_trust(tmp_path / "services")
    assert chains(trust) == chains(own)
    assert [log.public_key.raw_bytes for log in (*trust.root.tlogs, *trust.root.ctlogs)] == [
        log.public_key.raw_bytes for log in (*own.root.tlogs, *own.root.ctlogs)
    ]
    assert trust.config is not None
    assert trust.config.ca_urls[0].url == trust.config.rekor_tlog_urls[0].url
    assert trust.config.rekor_tlog_urls[0].major_api_version == 2
    assert trust.embedded is None


def test_what_is_signed_there_verifies(tmp_path: Path) -> None:
    async def round_trip() -> None:
        async with instance(tmp_path / "services") as services:
            await init_instance(tmp_path / "trust", described(services, tmp_path))
            trust = load_trust(tmp_path / "trust")
            assert trust.config is not None
            issuer = trust.config.oidc_urls[0].url
            embedded = load_trust(tmp_path / "services").embedded
            assert embedded is not None
            signing = replace(trust, embedded=replace(embedded, issuer=issuer))
            bundle = await anyio.to_thread.run_sync(sign, signing, b"an image")
            verify(signing, b"an image", bundle)

    anyio.run(round_trip)


def test_chains_that_are_given_are_not_asked_for(tmp_path: Path) -> None:
    def given(asked: Instance) -> Instance:
        authority, timestamper = chains(load_trust(tmp_path / "services"))
        (tmp_path / "ca.pem").write_text("".join(map(pem, authority)))
        # in the other order
        (tmp_path / "tsa.pem").write_text("".join(map(pem, reversed(timestamper))))
        return replace(asked, authority_chain=tmp_path / "ca.pem", timestamper_chain=tmp_path / "tsa.pem")

    nobody: Answers = {"/api/v2/trustBundle": status(500), "/api/v1/timestamp/certchain": status(500)}
    assert chains(made(tmp_path, given, nobody)) == chains(load_trust(tmp_path / "services"))


@pytest.mark.parametrize("flag", ["--fulcio", "--rekor", "--tsa", "--issuer"])
@pytest.mark.parametrize(
    "url", ["fulcio.example", "ftp://x", "http://", "https://u:passw0rd@x", "https://[", "https://x?a=b"]
)
def test_a_url_that_is_none_is_wrong_use(tmp_path: Path, flag: str, url: str) -> None:
    names = {"--fulcio": "authority", "--rekor": "log", "--tsa": "timestamper", "--issuer": "issuer"}
    with pytest.raises(UsageError, match=flag) as caught:
        made(tmp_path, lambda given: replace(given, **{names[flag]: url}))  # type: ignore[arg-type]
    assert "passw0rd" not in caught.value.what


def test_an_issuer_s_name_keeps_its_slash(tmp_path: Path) -> None:
    trust = made(tmp_path, lambda given: replace(given, issuer="https://issuer.example/"))
    assert trust.config is not None
    assert trust.config.oidc_urls[0].url == "https://issuer.example/"
    assert not trust.config.ca_urls[0].url.endswith("/")


def refuse(tmp_path: Path, message: str, **answers: Callable[[Request], Answer]) -> None:
    paths = {"bundle": "/api/v2/trustBundle", "chain": "/api/v1/timestamp/certchain"}
    given = {paths[name]: answer for name, answer in answers.items()}
    with pytest.raises(SupplyChainError, match=message):
        made(tmp_path, answers=given)
    assert not (tmp_path / "trust").exists()


def bundle(*certificates: x509.Certificate) -> Callable[[Request], Answer]:
    return lambda _: as_json({"chains": [{"certificates": [pem(one) for one in certificates]}]})


def chain(*certificates: x509.Certificate) -> Callable[[Request], Answer]:
    return lambda _: Answer(
        200, "".join(map(pem, certificates)).encode(), "application/pem-certificate-chain"
    )


def test_answers_that_are_no_chains_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path, "is no certificate authority", bundle=html)
    refuse(tmp_path, "a trust bundle without certificates", bundle=lambda _: as_json({"chains": [{}]}))
    refuse(tmp_path, "a trust bundle without certificates", bundle=lambda _: as_json({"chains": []}))
    refuse(tmp_path, "is no timestamp authority", chain=html)
    authority, (leaf, root) = chains(load_trust(tmp_path / "services"))
    refuse(tmp_path, "1 certificates 0 are roots", chain=chain(leaf))
    refuse(tmp_path, "2 certificates 2 are roots", chain=chain(root, *authority))
    refuse(tmp_path, "does not lead from a certificate for time stamping", chain=chain(root))
    refuse(tmp_path, "does not lead from a certificate for time stamping", chain=chain(*authority))
    refuse(tmp_path, "3 certificates are no chain", chain=chain(leaf, leaf, root))


def test_a_chain_whose_signature_does_not_hold_is_refused(tmp_path: Path) -> None:
    init_embedded(tmp_path / "services")
    init_embedded(tmp_path / "other")
    _, (leaf, _) = chains(load_trust(tmp_path / "services"))
    _, (_, root) = chains(load_trust(tmp_path / "other"))
    refuse(tmp_path, "the signature of the certificate .* does not hold", chain=chain(leaf, root))


def test_a_service_that_is_down_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceDown, match=r"certificate authority http://127\.0\.0\.1:1/api/v2/trustBundle"):
        made(tmp_path, lambda given: replace(given, authority="http://127.0.0.1:1"))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    bad, missing = tmp_path / "bad.pem", tmp_path / "missing.pem"
    bad.write_text("no key")

    def refused(message: str, **changed: Path) -> None:
        with pytest.raises(TrustError, match=message):
            made(tmp_path, lambda given: replace(given, **changed))  # type: ignore[arg-type]

    refused(r"bad\.pem: is no public key", log_key=bad)
    refused(r"bad\.pem: is no public key", certificate_log_key=bad)
    refused(r"missing\.pem: No such file", log_key=missing)
    refused(r"bad\.pem: holds no certificates", authority_chain=bad)
    refused(r"bad\.pem: holds no certificates", timestamper_chain=bad)


def test_an_ed25519_log_is_taken(tmp_path: Path) -> None:
    key = write_key(tmp_path / "ed.pem", ed25519.Ed25519PrivateKey.generate().public_key())
    trust = made(tmp_path, lambda given: replace(given, log_key=key))
    assert trust.root.tlogs[0].public_key.key_details == "PKIX_ED25519"


def test_a_log_with_a_key_that_no_client_knows_is_refused(tmp_path: Path) -> None:
    key = write_key(tmp_path / "p224.pem", ec.generate_private_key(ec.SECP224R1()).public_key())
    with pytest.raises(TrustError, match="of a kind that Sigstore clients do not know"):
        made(tmp_path, lambda given: replace(given, log_key=key))


def test_the_public_instance_needs_no_network(tmp_path: Path) -> None:
    init_public(tmp_path / "trust")
    trust = load_trust(tmp_path / "trust")
    assert trust.config is not None
    assert trust.config.ca_urls[0].url == "https://fulcio.sigstore.dev"
    assert trust.trusted_root.get_fulcio_certs()
    document = json.loads((tmp_path / "trust" / "trust.json").read_text())
    assert document["trustedRoot"] == json.loads((tmp_path / "trust" / "trusted_root.json").read_text())
    with pytest.raises(TrustError, match="a trust is never overwritten"):
        init_public(tmp_path / "trust")
