"""Services that answer, but not as the trust says: wrong certificates, clocks, keys, old answers."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import sigstore.sign
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from supply_chain import layout_write
from supply_chain.errors import SigningError, TokenError, TrustError
from supply_chain.referrer import write_referrer
from supply_chain.signing.services import services
from supply_chain.signing.sign import KINDS, sign_layout
from supply_chain.signing.sigstore_signer import open_signer
from supply_chain.signing.tokens import CLOCK_SKEW, read_token
from supply_chain.statement import statement_bytes
from supply_chain.trust import init_embedded, load_trust
from supply_chain.trust.certificates import pem
from supply_chain.trust.embedded import answers, authority, private, timestamper
from supply_chain.trust.embedded.authority import CertificateAuthority
from supply_chain.trust.embedded.certificate_log import CertificateLog
from supply_chain.trust.embedded.issuer import Issuer
from supply_chain.trust.embedded.log_file import LogFile
from supply_chain.trust.embedded.services import Services
from tests.supply_chain.signing.faulty import Reply, Request
from tests.supply_chain.signing.jwt_texts import GITEA, token
from tests.supply_chain.signing.test_faults import completes, fails
from tests.supply_chain.signing.through_proxy import AUTHORITY, IDENTITY, LOG, TIMESTAMPER, Behind

HOUR = timedelta(hours=1)


def remembered(behind: Behind, path: str) -> Callable[[Request], Reply]:
    """An answer of before: what the service at this path said first when something else was signed."""
    kept: list[Reply] = []

    def keep(request: Request) -> Reply:
        kept.append(behind.forward(request))
        return kept[-1]

    behind.answers(path, keep)
    index = behind.layout.folder / "index.json"
    before = index.read_bytes()
    assert behind.sign().signed
    index.unlink()
    index.write_bytes(before)
    return lambda _: kept[0]


def other_services(folder: Path, behind: Behind) -> Callable[[Request], Reply]:
    """The services of another embedded trust, whose issuer vouches for anyone."""
    init_embedded(folder)
    trust = load_trust(folder)
    assert trust.embedded is not None
    services, bearer = Services(trust, trust.embedded), trust.embedded.issue_token("builder@localhost")
    return lambda request: _asked(services.answer, request, bearer)


def _asked(service: Callable[[answers.Request], answers.Answer], request: Request, bearer: str) -> Reply:
    headers = {**request.headers, "authorization": f"Bearer {bearer}"}
    found = service(answers.Request(request.method, request.path, {}, headers, request.body))
    return Reply(found.status, found.body, {"Content-Type": found.content_type})


def test_an_authority_that_another_certificate_log_vouches_for(behind: Behind, tmp_path: Path) -> None:
    behind.answers(AUTHORITY, other_services(tmp_path / "other", behind))
    with fails(behind, SigningError, "no certificate log of the trusted root vouches for its certificate"):
        behind.sign()
    assert behind.proxy.asked(LOG) == 0
    completes(behind)


def test_an_authority_of_another_root(behind: Behind, tmp_path: Path) -> None:
    keys = private.load_keys(behind.embedded.path)
    rogue = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "disk-image embedded authority")])
    now = datetime.now(UTC)
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(rogue.public_key())
        .serial_number(1)
        .not_valid_before(now - HOUR)
        .not_valid_after(now + HOUR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(rogue.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True
        )
        .sign(rogue, hashes.SHA256())
    )
    vouching = Issuer(behind.issuer, keys.issuer)
    # The trusted certificate log takes it, as a public one takes many an authority's certificates.
    ct = CertificateLog(LogFile.create(tmp_path / "ct"), keys.ct, (root,))
    service = CertificateAuthority(root, rogue, vouching, ct)
    bearer = vouching.issue("builder@localhost")
    behind.answers(AUTHORITY, lambda request: _asked(service.answer, request, bearer))
    with fails(behind, SigningError, "its certificate does not chain to the trusted root"):
        behind.sign()
    assert behind.proxy.asked(LOG) == 0
    completes(behind)


def _certificate(reply: Reply, change: Callable[[x509.Certificate], x509.Certificate]) -> Reply:
    """The authority's reply with another leaf."""
    document = json.loads(reply.body)
    chain = document["signedCertificateEmbeddedSct"]["chain"]["certificates"]
    chain[0] = pem(change(x509.load_pem_x509_certificate(chain[0].encode())))
    return replace(reply, body=json.dumps(document).encode())


def test_an_authority_that_logs_no_certificates(behind: Behind) -> None:
    key = private.load_key(behind.embedded.path, "ca")

    def without_sct(leaf: x509.Certificate) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(leaf.subject)
            .issuer_name(leaf.issuer)
            .public_key(leaf.public_key())
            .serial_number(leaf.serial_number)
            .not_valid_before(leaf.not_valid_before_utc)
            .not_valid_after(leaf.not_valid_after_utc)
        )
        for one in leaf.extensions:
            if one.oid != x509.PrecertificateSignedCertificateTimestamps.oid:
                builder = builder.add_extension(one.value, one.critical)
        return builder.sign(key, hashes.SHA256())

    behind.answers(AUTHORITY, lambda request: _certificate(behind.forward(request), without_sct))
    with fails(behind, SigningError, "does not contain a signed certificate timestamp") as caught:
        behind.sign()
    assert "--ct-log-url" in caught.value.hint
    completes(behind)


def test_a_certificate_for_another_key(behind: Behind) -> None:
    behind.answers(AUTHORITY, remembered(behind, AUTHORITY))
    with fails(behind, SigningError, "its certificate is for another key than was asked for"):
        behind.sign()
    completes(behind)


def test_a_timestamp_of_something_else(behind: Behind) -> None:
    behind.answers(TIMESTAMPER, remembered(behind, TIMESTAMPER))
    logged = behind.proxy.asked(LOG)
    with fails(behind, SigningError, "its timestamp, of 20.*Z, does not verify with the trusted root"):
        behind.sign()
    assert behind.proxy.asked(LOG) == logged
    completes(behind)


def test_a_timestamp_of_another_authority(behind: Behind, tmp_path: Path) -> None:
    behind.answers(TIMESTAMPER, other_services(tmp_path / "other", behind))
    with fails(behind, SigningError, "its timestamp, of 20.*Z, does not verify with the trusted root"):
        behind.sign()
    assert behind.proxy.asked(LOG) == 0


def test_a_log_entry_of_something_else(behind: Behind) -> None:
    behind.answers(LOG, remembered(behind, LOG))
    with fails(behind, SigningError, "what was just signed does not verify: the new bundle: "):
        behind.sign()
    completes(behind)


def test_an_entry_of_another_log(behind: Behind, tmp_path: Path) -> None:
    behind.answers(LOG, other_services(tmp_path / "other", behind))
    with fails(behind, SigningError, "what was just signed does not verify: the new bundle: "):
        behind.sign()
    completes(behind)


def shifted(by: timedelta) -> type[datetime]:
    """A clock that is off by so much."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + by

    return Shifted


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (HOUR, "expected a time from .*Z to .*Z, when the signing certificate is valid, found"),
        # Then its own certificate was not valid yet.
        (-HOUR, "its timestamp, of 20.*Z, does not verify with the trusted root"),
    ],
)
def test_a_timestamp_authority_whose_clock_is_off(
    by: timedelta, said: str, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timestamper, "datetime", shifted(by))
    with fails(behind, SigningError, f"timestamp authority .*: {said}") as caught:
        behind.sign()
    assert "clock" in caught.value.hint
    assert behind.proxy.asked(LOG) == 0
    monkeypatch.undo()
    completes(behind)


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (
            HOUR,
            "timestamp authority .*: expected a time from .*Z to .*Z, when the signing certificate is valid",
        ),
        (-HOUR, "by the clock of this machine its new certificate has expired already"),
    ],
)
def test_a_certificate_authority_whose_clock_is_off(
    by: timedelta, said: str, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority, "datetime", shifted(by))
    with fails(behind, SigningError, said) as caught:
        behind.sign()
    assert "clock" in caught.value.hint
    assert behind.proxy.asked(LOG) == 0
    monkeypatch.undo()
    completes(behind)


@pytest.mark.parametrize(("by", "said"), [(3600, "is valid only from"), (-3600, "has expired")])
def test_an_issuer_whose_clock_is_off(
    by: int, said: str, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    _issued_at(behind, by, monkeypatch)
    with fails(behind, TokenError, said):
        behind.sign()
    assert not behind.proxy.seen


def _issued_at(behind: Behind, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + by)
        assert behind.embedded.embedded is not None
        behind.environment["DISK_IMAGE_IDENTITY_TOKEN"] = behind.embedded.embedded.issue_token(
            "builder@localhost"
        )


def test_a_clock_that_is_off_a_little_is_the_authoritys_to_judge(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    _issued_at(behind, CLOCK_SKEW // 2, monkeypatch)
    with fails(behind, SigningError, "certificate authority .*: HTTP 400: There was an error processing"):
        behind.sign()
    assert behind.proxy.asked(AUTHORITY) == 1


def test_an_issuer_that_the_authority_does_not_know(behind: Behind) -> None:
    behind.environment["DISK_IMAGE_IDENTITY_TOKEN"] = token()
    said = rf"HTTP 400: There was an error .* \(issuer {GITEA}, subject .*, audience sigstore, expires 20"
    with fails(behind, SigningError, said) as caught:
        behind.sign()
    line = f'"{GITEA}": {{issuer-url: "{GITEA}", client-id: sigstore, type: ci-provider, '
    assert f"add to Fulcio's oidc-issuers: {line}" in caught.value.hint


def test_an_embedded_trust_knows_its_own_issuer_without_asking(behind: Behind) -> None:
    behind.environment["DISK_IMAGE_IDENTITY_TOKEN"] = token()
    said = f"is not of the embedded trust's issuer: expected {behind.issuer}, found issuer {GITEA}"
    with fails(behind, TokenError, said):
        anyio.run(sign_layout, behind.layout.folder, behind.embedded, behind.environment)


def test_a_log_without_time_needs_a_timestamp_authority(behind: Behind) -> None:
    config = behind.trust.config
    assert config is not None
    config.tsa_urls.clear()
    trust = replace(behind.trust, config=config)
    with fails(behind, TrustError, "tells no time, and there is no timestamp authority"):
        anyio.run(sign_layout, behind.layout.folder, trust, behind.environment)
    assert not behind.proxy.seen


def test_a_password_in_netrc_is_not_sent_in_the_tokens_place(
    behind: Behind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password c4n4ry\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert behind.sign().signed
    sent = [one.headers.get("authorization", "") for one in behind.proxy.seen]
    assert sent == [f"Bearer {behind.environment['DISK_IMAGE_IDENTITY_TOKEN']}", *[""] * 6]
    assert base64.b64encode(b"me:c4n4ry").decode() not in str(behind.proxy.seen)


def test_a_certificate_that_expires_before_all_is_signed(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(request: Request) -> Reply:
        monkeypatch.setattr(sigstore.sign, "datetime", shifted(HOUR))
        return behind.forward(request)

    behind.answers(LOG, slow)
    with fails(behind, SigningError, "the signing certificate expired before all was signed"):
        behind.sign()
    monkeypatch.undo()
    completes(behind)


def test_a_trusted_root_that_lacks_a_log(behind: Behind) -> None:
    root = behind.embedded.root.model_copy(update={"ctlogs": []})
    trust = replace(behind.trust, root=root)
    with fails(behind, TrustError, "trusted root: CTFE keys not found"):
        anyio.run(sign_layout, behind.layout.folder, trust, behind.environment)


def test_whom_only_the_certificate_can_name_is_signed_for_once(behind: Behind) -> None:
    """Fulcio may make the name of claims as its operators say: then the certificate is asked for."""
    embedded = behind.embedded.embedded
    assert embedded is not None
    behind.environment["DISK_IMAGE_IDENTITY_TOKEN"] = embedded.issue_token("https://git.example/job/7")

    def by_template(request: Request) -> Reply:
        bearer = f"Bearer {embedded.issue_token(IDENTITY)}"
        return behind.forward(replace(request, headers={**request.headers, "authorization": bearer}))

    behind.answers(AUTHORITY, by_template)
    first = behind.sign()
    assert (first.signed, first.identity) == (True, IDENTITY)
    asked = [one.path for one in behind.proxy.seen]
    again = behind.sign()
    assert (again.signed, again.manifests) == (False, first.manifests)
    assert [one.path for one in behind.proxy.seen] == [*asked, AUTHORITY]


def test_provenance_of_another_form_is_replaced(behind: Behind) -> None:
    image = behind.layout.image

    async def sign_something() -> None:
        token = read_token(behind.environment["DISK_IMAGE_IDENTITY_TOKEN"], "the test")
        async with services() as asking:
            signer = await open_signer(behind.trust, token, asking)
            for kind in KINDS:
                signed = await signer.sign(statement_bytes(image.digest, kind, {}))
                referrer = write_referrer(signed.bundle, image, predicate_type=kind, created=signed.time)
                layout_write.hang(behind.layout, [referrer])

    anyio.run(sign_something)
    assert behind.sign().signed
    behind.verify()
