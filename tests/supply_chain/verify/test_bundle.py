"""One bundle: what it takes, and that each forgery is refused for what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from supply_chain.errors import TrustError, VerificationError
from supply_chain.referrer import BUNDLE_LIMIT
from supply_chain.statement import SIGNATURE, statement_bytes
from supply_chain.trust.embedded.log_file import LogFile
from supply_chain.trust.embedded.transparency_log import TransparencyLog
from supply_chain.verify.bundle import BundleVerifier
from supply_chain.verify.policy import Signer
from tests.supply_chain.verify import forgeries
from tests.supply_chain.verify.attacks import Attack, dump, get, without
from tests.supply_chain.verify.attacks_on_bundles import ENTRY, PROOF
from tests.supply_chain.verify.bench import SIGNER
from tests.supply_chain.verify.forge import IDENTITY, ISSUER, ORIGIN, Forge
from tests.supply_chain.verify.signed_image import Signed, bundle

DIGEST = f"sha256:{'ab' * 32}"


def test_what_is_known_of_a_verified_bundle(forge: Forge) -> None:
    content = bundle(forge, statement_bytes(DIGEST, SIGNATURE, {}, name="debian"))
    verified = BundleVerifier(forge.trust.root).verify(content, SIGNER, "bundle")
    assert verified.statement.digest == DIGEST
    assert verified.statement.predicate_type == SIGNATURE
    assert verified.signer == Signer(IDENTITY, ISSUER)
    assert abs(verified.time - datetime.now(UTC)) < timedelta(minutes=5)


@pytest.mark.parametrize("year", [1970, 2199])
def test_this_machine_s_clock_plays_no_part(
    forge: Forge, signed: Signed, year: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            return cls(year, 1, 1, tzinfo=tz)

    monkeypatch.setattr("sigstore._utils.datetime", Clock)
    BundleVerifier(forge.trust.root).verify(signed.bundles[SIGNATURE], SIGNER, "bundle")


def test_zero_and_empty_may_be_left_out(forge: Forge, tmp_path: Path) -> None:
    # protobuf's JSON does so: the first entry of a log has no index, and its proof no hashes
    first = Forge(forge.trust)
    first._log = TransparencyLog(LogFile.create(tmp_path / "log"), forge.keys.log, ORIGIN)
    document = first.bundle(statement_bytes(DIGEST, SIGNATURE, {}))
    for at in ((*ENTRY, "logIndex"), (*PROOF, "logIndex"), (*PROOF, "hashes")):
        assert get(document, at) in ("0", [])
        document = without(document, at)
    BundleVerifier(forge.trust.root).verify(dump(document), SIGNER, "bundle")


def test_too_large(forge: Forge) -> None:
    with pytest.raises(VerificationError, match=f"expected at most {BUNDLE_LIMIT} bytes"):
        BundleVerifier(forge.trust.root).verify(b" " * (BUNDLE_LIMIT + 1), SIGNER, "bundle")


@pytest.mark.parametrize("part", ["certificate_authorities", "tlogs", "ctlogs"])
def test_a_trust_that_lacks_a_part_is_no_verdict(forge: Forge, signed: Signed, part: str) -> None:
    root = forge.trust.root.model_copy(update={part: []})
    with pytest.raises(TrustError):
        BundleVerifier(root).verify(signed.bundles[SIGNATURE], SIGNER, "bundle")


@pytest.fixture(scope="module")
def forged(forge: Forge, stranger: Forge, signed: Signed) -> Mapping[str, Attack]:
    """All forgeries by name."""
    return {
        attack.what: attack
        for attack in (
            *forgeries.forged(forge, stranger, signed),
            *forgeries.trusts(forge, stranger, signed),
        )
    }


_CHAIN = "failed to build timestamp certificate chain"
_NO_TIME = "time: expected one that a trusted authority has signed, found none"
_OTHER_ENTRY = "transparency log entry is inconsistent"
REASONS = {
    "certificate: another identity": "expected the identity",
    "certificate: another issuer": "expected the issuer",
    "certificate: issuers that differ": "expected one issuer, found https://evil.example and",
    "certificate: a second name": "expected one subject alternative name, found 2",
    "certificate: not for signing": "Key usage",
    "certificate: not for code": "code signing",
    "certificate: in no certificate log": "failed to verify SCT",
    "certificate: logged for another certificate": "failed to verify SCT",
    "certificate: logged by another certificate log": "failed to verify SCT",
    "certificate: expired when signed": "cert is not valid at validation time",
    "certificate: expired a second ago": "cert is not valid at validation time",
    "certificate: not valid yet": "cert is not valid at validation time",
    "certificate: self-signed": _CHAIN,
    "certificate: of an authority with the same names": _CHAIN,
    "certificate: signed by the log's key": _CHAIN,
    "certificate: signed by the timestamper's key": _CHAIN,
    "authority in the certificate's place": _CHAIN,
    "certificate of another key": "DSSE: invalid signature",
    "another certificate for the same key": _OTHER_ENTRY,
    "payload type 'application/json'": "payload type: expected application/vnd.in-toto+json",
    "payload of another statement": "DSSE: invalid signature",
    "envelope of another statement": _NO_TIME,
    "envelope and timestamp of another statement": _OTHER_ENTRY,
    "log entry of another statement": _OTHER_ENTRY,
    "log entry of another signature of the same statement": _OTHER_ENTRY,
    "a second signature of the same key": "expected one signature, found 2",
    "no signature": "expected one signature, found 0",
    "plain signature in the envelope's place": "expected a DSSE envelope, found a plain signature",
    "log entry of another log": "checkpoint: invalid signature",
    "checkpoint of another log": "checkpoint: Signature not found",
    "an older checkpoint": "invalid root hash signature",
    "checkpoint: another origin": "checkpoint: invalid signature",
    "checkpoint: no signature": "at least one signature",
    "log id with the same first bytes": "expected the id of a log that is trusted",
    "two log entries": "expected exactly one log entry",
    "log entry called hashedrekord 0.0.1": "Unsupported DSSE log entry type",
    "a time that nothing signs": "expected no time, since no promise signs it",
    "a promise that is none": "expected the time that its promise signs",
    "log index '0'": "log entry: expected index",
    "log index '01'": "canonical form",
    "size of the tree +1": "proof has wrong size",
    "no timestamp": "inclusion promise or signed timestamp",
    "timestamp of another signature": _NO_TIME,
    "timestamp of another authority": _NO_TIME,
    "too many timestamps": "too many signed timestamp",
    "a chain in the certificate's place": "expected certificate in bundle",
    "media type 'application/vnd.dev.sigstore.bundle+json;version=0.2'": "media type: expected",
    "certificate_authorities of another trust": _CHAIN,
    "certificate_authorities no longer valid": "a certificate authority that the trust calls valid at",
    "tlogs no longer valid": "a transparency log that the trust calls valid at",
    "ctlogs not yet valid": "a certificate log that the trust calls valid at",
    "timestamp_authorities no longer valid": _NO_TIME,
}


@pytest.mark.parametrize(("name", "reason"), REASONS.items(), ids=REASONS)
def test_refused_for_what_is_wrong(
    forge: Forge, forged: Mapping[str, Attack], name: str, reason: str
) -> None:
    attack = forged[name]
    with pytest.raises(VerificationError) as refused:
        BundleVerifier((attack.trust or forge.trust).root).verify(attack.bundle or b"", SIGNER, "bundle")
    assert reason in refused.value.what


def test_the_proofs_tree_is_the_checkpoints(forged: Mapping[str, Attack], forge: Forge) -> None:
    # a path of the same shape leads to the same root, whatever size is claimed
    reasons = []
    for name, attack in forged.items():
        if name.startswith("proven in a later tree, said"):
            with pytest.raises(VerificationError) as refused:
                BundleVerifier(forge.trust.root).verify(attack.bundle or b"", SIGNER, "bundle")
            reasons.append(refused.value.what)
    assert any("checkpoint: expected a log of" in reason for reason in reasons)
