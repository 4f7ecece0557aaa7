"""One Sigstore bundle, verified without network or clock: who signed which statement, and when.

Bundle v0.3: https://docs.sigstore.dev/about/bundle/. What is checked, in this order:

1. The bytes are one strict JSON document: bounded, no key twice, nothing unknown, and everything in it is
   read as it stands (base64 in its one canonical form, numbers in theirs).
2. It is a bundle v0.3 with a DSSE envelope of one signature over an in-toto statement.
3. sigstore-python: a trusted timestamp authority (or the log, with its signed promise) says when; at that
   time the certificate was valid and chains to the trusted authority; a certificate-transparency log has it;
   the signer is one that the policy names; the transparency log's signed checkpoint includes the entry; the
   envelope's signature is the certificate's; the entry is of this envelope, signature and certificate. All
   keys of authority and logs are those that the trusted root calls valid at that time.
4. What sigstore-python leaves open: the entry names a log that is trusted, the checkpoint is of the proof's
   tree size, the entry's index is the proof's, and no time or promise stands there unsigned.
5. The payload is a statement about one image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from supply_chain.errors import InvalidDocument, TrustError, VerificationError
from supply_chain.oci import parse_object
from supply_chain.referrer import BUNDLE, BUNDLE_LIMIT
from supply_chain.statement import PAYLOAD_TYPE, Statement, parse_statement
from supply_chain.verify.policy import Signer, SignerPolicy, signer_of

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import Bundle
    from sigstore.verify import Verifier
    from sigstore_models.common.v1 import TimeRange
    from sigstore_models.trustroot.v1 import TrustedRoot as RootDocument

# Version 0.3 has two spellings.
MEDIA_TYPES = (BUNDLE, "application/vnd.dev.sigstore.bundle+json;version=0.3")
_Result = TypeVar("_Result")
_HINT = "don't trust it; have the image signed again"
_COMPLETE = "complete it, or name another trust"


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """A statement by `signer`, who had signed it by `time`."""

    statement: Statement
    signer: Signer
    time: datetime


class BundleVerifier:
    """Verifies bundles against one trusted root (Trust.root). Never asks a network."""

    def __init__(self, root: RootDocument) -> None:
        self._root = root

    def verify(self, content: bytes, policy: SignerPolicy, what: str) -> VerifiedBundle:
        """The statement in a bundle by a signer whom `policy` names.

        Raises OtherSigner for another signer's, VerificationError for anything else that does not hold, and
        TrustError when the trusted root itself can't serve.
        """
        bundle = parse_bundle(content, what)
        envelope = bundle._inner.dsse_envelope
        if envelope is None:  # (2)
            raise _refused(what, "content", "a DSSE envelope", "a plain signature")
        if (count := len(envelope.signatures)) != 1:  # (2)
            raise _refused(what, "envelope", "one signature", f"{count}")
        signer, time, (payload_type, payload) = self.hold(
            bundle, policy, what, lambda verifier, names: verifier.verify_dsse(bundle, names)
        )
        if payload_type != PAYLOAD_TYPE:  # (2)
            raise _refused(what, "payload type", PAYLOAD_TYPE, f"{payload_type!a:.100}")
        try:
            statement = parse_statement(payload, what)  # (5)
        except InvalidDocument as error:
            raise VerificationError(error.what, error.hint) from None
        return VerifiedBundle(statement, signer, time)

    def hold(
        self, bundle: Bundle, policy: SignerPolicy, what: str, verify: Callable[[Verifier, _Names], _Result]
    ) -> tuple[Signer, datetime, _Result]:
        """Steps 3 and 4, with `verify` as the method of sigstore-python that fits the bundle's content."""
        from sigstore.errors import Error, MetadataError

        names = _Names(policy)
        try:
            times = [result.time for result in self._verifier._establish_time(bundle)]
            result = verify(self._of_time(bundle, times, what), names)  # (3)
        except (VerificationError, TrustError):
            raise
        except MetadataError as error:
            raise TrustError(f"trusted root: {error}", _COMPLETE) from None
        except Error as error:
            raise _invalid(what, str(error)) from None
        except Exception as error:
            # What can be wrong with hostile bytes has no end, and nothing but success means verified.
            raise _invalid(what, f"{type(error).__name__}: {error}") from None
        assert names.signer is not None
        self._check_log_entry(bundle, what)  # (4)
        # The earliest: anybody can have the same signature timestamped again.
        return names.signer, min(times), result

    @cached_property
    def _verifier(self) -> Verifier:
        return self._verifier_of(self._root)

    def _of_time(self, bundle: Bundle, times: Sequence[datetime], what: str) -> Verifier:
        """A verifier that knows only what the trusted root calls valid at all these times: a key that was
        retired, since it may have been stolen, signs nothing any more. sigstore-python leaves this open for
        all but timestamps.
        """
        if not times:
            raise _refused(what, "time", "one that a trusted authority has signed", "none")
        root = self._root
        kept = root.model_copy(
            update={
                "certificate_authorities": [
                    one for one in root.certificate_authorities if _includes(one.valid_for, times)
                ],
                "tlogs": [one for one in root.tlogs if _includes(one.public_key.valid_for, times)],
                "ctlogs": [
                    one
                    for one in root.ctlogs
                    if _includes(one.public_key.valid_for, _logged(bundle.signing_certificate))
                ],
            }
        )
        if kept == root:
            return self._verifier
        for name, found in (
            ("certificate authority", kept.certificate_authorities),
            ("transparency log", kept.tlogs),
            ("certificate log", kept.ctlogs),
        ):
            if not found:
                expected = f"a {name} that the trust calls valid at {min(times)}"
                raise _refused(what, "trust", expected, "none")
        return self._verifier_of(kept)

    def _check_log_entry(self, bundle: Bundle, what: str) -> None:
        """Step 4."""
        entry = bundle.log_entry._inner
        proof = entry.inclusion_proof
        assert proof.checkpoint is not None
        named = entry.log_id.key_id
        logs = [log for one in self._root.tlogs for log in (one.log_id, one.checkpoint_key_id) if log]
        if named not in [log.key_id for log in logs]:
            raise _refused(what, "log entry", "the id of a log that is trusted", named.hex())
        # The checkpoint's signature has just been verified over these very lines.
        stated = proof.checkpoint.envelope.split("\n")[1]
        if stated != str(proof.tree_size):
            raise _refused(what, "checkpoint", f"a log of {proof.tree_size} entries", f"{stated!a:.100}")
        if entry.inclusion_promise is not None:
            # The promise signs index and time; sigstore-python passes over a promise without a time.
            if not entry.integrated_time:
                raise _refused(what, "log entry", "the time that its promise signs", "none")
        elif entry.integrated_time:
            raise _refused(
                what, "log entry", "no time, since no promise signs it", f"{entry.integrated_time}"
            )
        elif entry.log_index != proof.log_index:
            raise _refused(what, "log entry", f"index {proof.log_index}, as proven", f"{entry.log_index}")

    def _verifier_of(self, root: RootDocument) -> Verifier:
        from sigstore.errors import Error
        from sigstore.verify import Verifier

        from supply_chain.verify.clockless_root import ClocklessRoot

        try:
            return Verifier(trusted_root=ClocklessRoot(root))
        except (Error, ValueError) as error:
            raise TrustError(f"trusted root: {error}", _COMPLETE) from None


class _Names:
    """sigstore-python's VerificationPolicy that is ours, and remembers whom it saw."""

    def __init__(self, policy: SignerPolicy) -> None:
        self._policy = policy
        self.signer: Signer | None = None

    def verify(self, cert: Certificate) -> None:
        self.signer = signer_of(cert)
        self._policy.check(self.signer)


def parse_bundle(content: bytes, what: str) -> Bundle:
    """Step 1, and the bundle's version of step 2. Raises VerificationError."""
    from sigstore.models import Bundle

    if len(content) > BUNDLE_LIMIT:
        raise _refused(what, "size", f"at most {BUNDLE_LIMIT} bytes", f"{len(content)}")
    try:
        loaded = parse_object(content, what)  # (1)
    except InvalidDocument as error:
        raise VerificationError(error.what, _HINT) from None
    media_type = loaded.get("mediaType")
    if media_type not in MEDIA_TYPES:  # (2)
        raise _refused(what, "media type", MEDIA_TYPES[0], f"{media_type!a:.100}")
    _complete(loaded)
    try:
        bundle = Bundle.from_json(json.dumps(loaded))
    except Exception as error:
        # What can be wrong with hostile bytes has no end.
        raise _invalid(what, str(error)) from None
    # (1) sigstore-python reads base64 and numbers leniently; what it passed over, no signature would cover.
    if _without_nulls(loaded) != json.loads(bundle.to_json()):
        raise _invalid(what, "base64 or a number in it is not in its canonical form")
    return bundle


def _complete(loaded: dict[str, Any]) -> None:
    """Put in what protobuf's JSON leaves out because it is zero or empty: the first entry of a log has the
    index 0, and sigstore-python wants to see it.
    """
    material = loaded.get("verificationMaterial")
    entries = material.get("tlogEntries") if isinstance(material, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            entry.setdefault("logIndex", "0")
            if isinstance(proof := entry.get("inclusionProof"), dict):
                proof.setdefault("logIndex", "0")
                proof.setdefault("hashes", [])


def _without_nulls(value: Any) -> Any:
    """protobuf's JSON takes null for what is not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _includes(period: TimeRange | None, times: Sequence[datetime]) -> bool:
    """Whether all times are within the period, its ends included."""
    if period is None:
        return True
    end = period.end
    return all(period.start <= time and (end is None or time <= end) for time in times)


def _logged(certificate: Certificate) -> list[datetime]:
    """When certificate logs say that they took the certificate in."""
    from cryptography import x509

    try:
        timestamps = certificate.extensions.get_extension_for_class(
            x509.PrecertificateSignedCertificateTimestamps
        )
    except x509.ExtensionNotFound:
        return []
    return [one.timestamp.replace(tzinfo=UTC) for one in timestamps.value]


def _refused(what: str, part: str, expected: str, found: str) -> VerificationError:
    return VerificationError(
        f"{what}: {part}: expected {expected}, found {found}", _HINT, expected=expected, found=found
    )


def _invalid(what: str, reason: str) -> VerificationError:
    # Some of these messages have the whole bundle in them.
    return VerificationError(f"{what}: {' '.join(reason.split())[:300]}", _HINT)
