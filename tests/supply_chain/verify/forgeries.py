"""Bundles that somebody made who had some of the keys or none, and trusts that don't trust who made one."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from sigstore_models.common.v1 import TimeRange

from supply_chain.statement import PAYLOAD_TYPE, SIGNATURE, statement_bytes
from supply_chain.trust.certificates import der
from supply_chain.verify.policy import signer_policy
from tests.supply_chain.verify.attacks import (
    Attack,
    Json,
    Path,
    dump,
    get,
    put,
)
from tests.supply_chain.verify.attacks_on_bundles import (
    CERTIFICATE,
    CHECKPOINT,
    ENTRY,
    ENVELOPE,
    MATERIAL,
    PROOF,
    SIGNATURE_OF,
    TIMESTAMPS,
)
from tests.supply_chain.verify.forge import IDENTITY, ISSUER, Forge, Names, b64, pae
from tests.supply_chain.verify.signed_image import Signed

# The order of P-256: with (r, s) also (r, order - s) is a signature.
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def forged(forge: Forge, stranger: Forge, signed: Signed) -> Iterator[Attack]:
    """Bundles that somebody made who had some of the keys, or none."""
    statement = statement_bytes(signed.image.digest, SIGNATURE, {})
    key = ec.generate_private_key(ec.SECP256R1())
    honest = forge.certificate(key)

    def attack(what: str, bundle: Json, harmless: str = "") -> Attack:
        return Attack("bundle: forged", what, dump(bundle), harmless=harmless)

    for what, names in {
        "another identity": Names(identity=IDENTITY + "x"),
        "another issuer": Names(issuer=ISSUER + "/"),
        "issuers that differ": Names(old_issuer="https://evil.example"),
        "a second name": Names(more_names=[x509.RFC822Name("admin@example.org")]),
        "a mail address like the identity": Names(identity="image.yml@refs.heads.main"),
        "not for signing": Names(signs=False),
        "not for code": Names(code_signing=False),
        "in no certificate log": Names(logged=False),
        "expired when signed": Names(age=timedelta(hours=1)),
        "expired a second ago": Names(age=timedelta(minutes=10, seconds=2)),
        "not valid yet": Names(age=timedelta(minutes=-5)),
    }.items():
        yield attack(f"certificate: {what}", forge.bundle(statement, names))
    for what, certificate in {
        "self-signed": _reissued(honest, key, key),
        "of an authority with the same names": stranger.certificate(key),
        "signed by another key": _reissued(honest, key, ec.generate_private_key(ec.SECP256R1())),
        "signed by the log's key": _reissued(honest, key, forge.keys.log),
        "signed by the timestamper's key": _reissued(honest, key, forge.keys.tsa),
        "logged for another certificate": _with_sct(forge, key, _sct(forge.certificate(key))),
        "logged by another certificate log": _with_sct(forge, key, _sct(stranger.certificate(key))),
        "log's timestamp cut": _with_sct(forge, key, _sct(honest)[:-3]),
    }.items():
        yield attack(f"certificate: {what}", forge.bundle_of(statement, key, certificate))
    for payload_type in (
        "application/json",
        "",
        "application/vnd.in-toto+json ",
        "APPLICATION/VND.IN-TOTO+JSON",
    ):
        yield attack(f"payload type {payload_type!r}", forge.bundle(statement, payload_type=payload_type))
    yield from _spliced(forge, stranger, statement)


def _spliced(forge: Forge, stranger: Forge, statement: bytes) -> Iterator[Attack]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = forge.certificate(key)
    bundle = forge.bundle_of(statement, key, certificate)
    again = forge.bundle_of(statement, key, certificate)
    strange = stranger.bundle_of(statement, key, certificate)
    evil = statement_bytes(f"sha256:{'66' * 32}", SIGNATURE, {})
    evils = forge.bundle_of(evil, key, certificate)
    signature = base64.b64decode(get(bundle, SIGNATURE_OF))
    digest = hashlib.sha256(pae(PAYLOAD_TYPE, statement)).digest()
    stamp = get(bundle, TIMESTAMPS)[0]

    def attack(what: str, *changes: tuple[Path, object], harmless: str = "") -> Attack:
        document = bundle
        for at, value in changes:
            document = put(document, at, value)
        return Attack("bundle: spliced", what, dump(document), harmless=harmless)

    # whose signature is it, and what of
    yield attack("payload of another statement", (("dsseEnvelope", "payload"), b64(evil)))
    yield attack("envelope of another statement", (ENVELOPE, evils["dsseEnvelope"]))
    yield attack(
        "envelope and timestamp of another statement",
        (ENVELOPE, evils["dsseEnvelope"]),
        (TIMESTAMPS, get(evils, TIMESTAMPS)),
    )
    yield attack(
        "envelope and log entry of another statement, with this one's timestamp",
        (ENVELOPE, evils["dsseEnvelope"]),
        (ENTRY, get(evils, ENTRY)),
    )
    yield attack("log entry of another statement", (ENTRY, get(evils, ENTRY)))
    yield attack("log entry of another signature of the same statement", (ENTRY, get(again, ENTRY)))
    yield attack(
        "a second signature of the same key",
        (
            ("dsseEnvelope", "signatures"),
            [{"sig": get(bundle, SIGNATURE_OF)}, {"sig": get(again, SIGNATURE_OF)}],
        ),
    )
    yield attack("no signature", (("dsseEnvelope", "signatures"), []))
    yield attack("empty signature", (SIGNATURE_OF, ""))
    yield attack("the other of ECDSA's two signatures", (SIGNATURE_OF, b64(_malleated(signature))))
    other_key = ec.generate_private_key(ec.SECP256R1())
    other_signature = other_key.sign(pae(PAYLOAD_TYPE, statement), ec.ECDSA(hashes.SHA256()))
    yield attack("signature of a key without certificate", (SIGNATURE_OF, b64(other_signature)))
    yield attack(
        "plain signature in the envelope's place",
        (ENVELOPE, None),
        (
            ("messageSignature",),
            {"messageDigest": {"algorithm": "SHA2_256", "digest": b64(digest)}, "signature": b64(signature)},
        ),
    )
    yield attack(
        "plain signature beside the envelope",
        (
            ("messageSignature",),
            {"messageDigest": {"algorithm": "SHA2_256", "digest": b64(digest)}, "signature": b64(signature)},
        ),
    )
    # the log
    yield attack("log entry of another log", (ENTRY, get(strange, ENTRY)))
    yield attack("proof of another log", (PROOF, get(strange, PROOF)))
    yield attack("checkpoint of another log", (CHECKPOINT, get(strange, CHECKPOINT)))
    yield attack("an older checkpoint", (CHECKPOINT, get(evils, CHECKPOINT)))
    yield attack("another log's id", ((*ENTRY, "logId"), get(strange, (*ENTRY, "logId"))))
    yield attack(
        "log id with the same first bytes",
        (
            (*ENTRY, "logId", "keyId"),
            b64(base64.b64decode(get(bundle, (*ENTRY, "logId", "keyId")))[:4] + bytes(28)),
        ),
    )
    yield attack("two log entries", ((MATERIAL, "tlogEntries"), [get(bundle, ENTRY), get(again, ENTRY)]))
    yield attack("no log entry", ((MATERIAL, "tlogEntries"), []))
    for kind, version in (
        ("hashedrekord", "0.0.1"),
        ("dsse", "0.0.1"),
        ("dsse", "0.0.2"),
        ("intoto", "0.0.2"),
        ("x", "0.0.2"),
    ):
        yield attack(
            f"log entry called {kind} {version}",
            ((*ENTRY, "kindVersion"), {"kind": kind, "version": version}),
        )
    yield attack("a time that nothing signs", ((*ENTRY, "integratedTime"), "1700000000"))
    yield attack(
        "a promise that is none", ((*ENTRY, "inclusionPromise"), {"signedEntryTimestamp": b64(signature)})
    )
    yield attack(
        "a promise that is none, with a time",
        ((*ENTRY, "inclusionPromise"), {"signedEntryTimestamp": b64(signature)}),
        ((*ENTRY, "integratedTime"), str(int(datetime.now(UTC).timestamp()))),
    )
    yield attack(
        "a promise in the timestamp's place",
        ((*ENTRY, "inclusionPromise"), {"signedEntryTimestamp": b64(signature)}),
        ((*ENTRY, "integratedTime"), str(int(datetime.now(UTC).timestamp()))),
        (TIMESTAMPS, []),
    )
    for index in ("0", "1", "99999999999999999999", "-1", "+1", "01", " 1", "1.0", "0x1"):
        if index != get(bundle, (*ENTRY, "logIndex")):
            yield attack(f"log index {index!r}", ((*ENTRY, "logIndex"), index))
        if index != get(bundle, (*PROOF, "logIndex")):
            yield attack(f"index in the proof {index!r}", ((*PROOF, "logIndex"), index))
        yield attack(f"size of the tree {index!r}", ((*PROOF, "treeSize"), index))
    size = int(get(bundle, (*PROOF, "treeSize")))
    for near in (size - 1, size + 1, size * 2):
        yield attack(f"size of the tree {near - size:+}", ((*PROOF, "treeSize"), str(near)))
    later = forge.proven_later(get(bundle, ENTRY))
    yield attack("proven in a later tree", (ENTRY, later), harmless="the log has it there too")
    # the path through a tree is of the same shape in some trees of other sizes
    for near in range(size, size + 40):
        if str(near) != later["inclusionProof"]["treeSize"]:
            changes = ((ENTRY, later), ((*PROOF, "treeSize"), str(near)))
            yield attack(f"proven in a later tree, said to be of {near}", *changes)
    yield from _checkpoints(bundle, attack)
    # the time
    yield attack("no timestamp", (TIMESTAMPS, []))
    yield attack("no timestamps at all", ((MATERIAL, "timestampVerificationData"), {}))
    yield attack("timestamp of another signature", (TIMESTAMPS, get(evils, TIMESTAMPS)))
    yield attack(
        "timestamp of another authority",
        (TIMESTAMPS, [{"signedTimestamp": b64(stranger.timestamp(signature))}]),
    )
    yield attack(
        "timestamp of the payload", (TIMESTAMPS, [{"signedTimestamp": b64(forge.timestamp(statement))}])
    )
    yield attack("the same timestamp twice", (TIMESTAMPS, [stamp, stamp]))
    yield attack(
        "too many timestamps",
        (TIMESTAMPS, [{"signedTimestamp": b64(forge.timestamp(signature))} for _ in range(33)]),
    )
    yield attack("timestamp that is none", (TIMESTAMPS, [{"signedTimestamp": b64(b"now")}]))
    yield attack("a second timestamp that is none", (TIMESTAMPS, [stamp, {"signedTimestamp": b64(b"now")}]))
    yield attack(
        "a second timestamp of another authority",
        (TIMESTAMPS, [stamp, {"signedTimestamp": b64(stranger.timestamp(signature))}]),
        harmless="one trusted timestamp is enough, and is there",
    )
    yield attack(
        "a second timestamp of the same authority",
        (TIMESTAMPS, [stamp, {"signedTimestamp": b64(forge.timestamp(signature))}]),
        harmless="both are true",
    )
    # the certificate
    yield attack("no certificate", ((MATERIAL, "certificate"), None))
    yield attack("authority in the certificate's place", (CERTIFICATE, b64(der(forge.authority))))
    yield attack("another certificate for the same key", (CERTIFICATE, b64(der(forge.certificate(key)))))
    yield attack(
        "a stranger's certificate for the same key", (CERTIFICATE, b64(der(stranger.certificate(key))))
    )
    yield attack("certificate of another key", (CERTIFICATE, b64(der(forge.certificate(other_key)))))
    yield attack("a certificate and a byte", (CERTIFICATE, b64(der(certificate) + b"\0")))
    yield attack(
        "a chain in the certificate's place",
        ((MATERIAL, "certificate"), None),
        ((MATERIAL, "x509CertificateChain"), {"certificates": [{"rawBytes": b64(der(certificate))}]}),
    )
    yield attack(
        "a chain beside the certificate",
        ((MATERIAL, "x509CertificateChain"), {"certificates": [{"rawBytes": b64(der(stranger.authority))}]}),
    )
    yield attack(
        "a bare key in the certificate's place",
        ((MATERIAL, "certificate"), None),
        ((MATERIAL, "publicKey"), {"hint": "key"}),
    )
    for media_type in (
        "",
        "application/json",
        "application/vnd.dev.sigstore.bundle+json;version=0.1",
        "application/vnd.dev.sigstore.bundle+json;version=0.2",
        "application/vnd.dev.sigstore.bundle.v0.4+json",
        "application/vnd.dev.sigstore.bundle.v0.3+json ",
        "application/vnd.dev.sigstore.bundle.V0.3+json",
    ):
        yield attack(f"media type {media_type!r}", (("mediaType",), media_type))
    yield attack(
        "the other spelling of version 0.3",
        (("mediaType",), "application/vnd.dev.sigstore.bundle+json;version=0.3"),
        harmless="the same version",
    )
    yield attack(
        "a hint at the key",
        (("dsseEnvelope", "signatures", 0, "keyid"), "abc"),
        harmless="a hint that nobody reads",
    )


def trusts(forge: Forge, stranger: Forge, signed: Signed) -> Iterator[Attack]:
    """The honest bundle, and a trust that does not trust who made it."""
    # signed now, when both trusts have begun
    bundle = dump(forge.bundle(statement_bytes(signed.image.digest, SIGNATURE, {})))
    mine, theirs = forge.trust.root, stranger.trust.root
    past = TimeRange(start=datetime(2020, 1, 1, tzinfo=UTC), end=datetime(2020, 1, 2, tzinfo=UTC))
    future = TimeRange(start=datetime.now(UTC) + timedelta(days=1))

    def attack(what: str, **parts: Any) -> Attack:
        root = mine.model_copy(update=parts)
        return Attack("trust: one part is another's", what, bundle, trust=replace(forge.trust, root=root))

    for part in ("certificate_authorities", "tlogs", "ctlogs", "timestamp_authorities"):
        (own,) = getattr(mine, part)
        yield attack(f"{part} of another trust", **{part: getattr(theirs, part)})
        for name, period in (("no longer", past), ("not yet", future)):
            if hasattr(own, "valid_for"):
                changed = own.model_copy(update={"valid_for": period})
            else:
                public_key = own.public_key.model_copy(update={"valid_for": period})
                changed = own.model_copy(update={"public_key": public_key})
            yield attack(f"{part} {name} valid", **{part: [changed]})
            yield attack(
                f"{part} {name} valid, beside another's", **{part: [changed, *getattr(theirs, part)]}
            )
    for what, policy in {
        "prefix": signer_policy(identity_regexp="https://git[.]example/org/os/", issuer=ISSUER),
        "part": signer_policy(identity_regexp="image[.]yml", issuer=ISSUER),
        "anchored prefix": signer_policy(identity_regexp="^https://git[.]example", issuer=ISSUER),
        "anchored end": signer_policy(identity_regexp="main$", issuer=ISSUER),
        "several lines": signer_policy(identity_regexp="(?m)^https://git[.]example$", issuer=ISSUER),
        "issuer's prefix": signer_policy(identity=IDENTITY, issuer_regexp="https://git[.]example"),
        "issuer for identity": signer_policy(identity=ISSUER, issuer=IDENTITY),
        "other case": signer_policy(identity=IDENTITY.upper(), issuer=ISSUER),
        "exact text that is a regexp": signer_policy(identity=".+", issuer=ISSUER),
    }.items():
        yield Attack("policy: matches a part", what, bundle, policy=policy)


def _checkpoints(bundle: Json, attack: Any) -> Iterator[Attack]:
    note: str = get(bundle, CHECKPOINT)
    text, _, signatures = note.partition("\n\n")
    origin, size, root = text.split("\n")
    _, name, signature = signatures.split()
    raw = base64.b64decode(signature)
    for what, bad in {
        "no signature": f"{text}\n\n",
        "no blank line": f"{text}\n{signatures}",
        "another origin": note.replace(origin, "log.example", 1),
        "another size": note.replace(f"\n{size}\n", f"\n{int(size) + 1}\n", 1),
        "another root": note.replace(root, b64(bytes(32)), 1),
        "a line more": note.replace(f"{root}\n", f"{root}\nmore\n", 1),
        "another hint": note.replace(signature, b64(bytes(4) + raw[4:])),
        "a hint alone": note.replace(signature, b64(raw[:4])),
        "a byte less": note.replace(signature, b64(raw[:-1])),
        "carriage returns": note.replace("\n", "\r\n"),
        "a dash for the long one": note.replace("\u2014", "-"),
        "no last newline": note[:-1],
        "empty": "",
    }.items():
        yield attack(f"checkpoint: {what}", (CHECKPOINT, bad))
    yield attack(
        "checkpoint: a second blank line",
        (CHECKPOINT, note.replace("\n\n", "\n\n\n", 1)),
        harmless="the signed text is the same",
    )
    malleated = b64(raw[:4] + _malleated(raw[4:]))
    yield attack(
        "checkpoint: the other of ECDSA's two signatures",
        (CHECKPOINT, note.replace(signature, malleated)),
        harmless="the log's signature over the same text",
    )
    yield attack(
        "checkpoint: a witness's signature too",
        (CHECKPOINT, f"{note}\u2014 witness.example {b64(bytes(80))}\n"),
        harmless="the log's signature is there, others are no matter",
    )
    yield attack(
        "checkpoint: another name at the signature",
        (CHECKPOINT, note.replace(f"\u2014 {name} ", "\u2014 log.example ")),
        harmless="the signed text has the log's name, the key's hint decides",
    )


def _malleated(signature: bytes) -> bytes:
    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, _ORDER - s)


def _reissued(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """The same certificate, for `key`, signed by another key."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(certificate.issuer)
        .public_key(key.public_key())
        .serial_number(certificate.serial_number)
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
    )
    for extension in certificate.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(by, hashes.SHA256())


def _sct(certificate: x509.Certificate) -> bytes:
    """The extension with the certificate log's timestamp."""
    oid = x509.PrecertificateSignedCertificateTimestamps.oid
    extension = certificate.extensions.get_extension_for_oid(oid).value
    return extension.public_bytes()


def _with_sct(forge: Forge, key: ec.EllipticCurvePrivateKey, content: bytes) -> x509.Certificate:
    """A certificate of the authority with such an extension."""
    plain = forge.certificate(key, Names(logged=False))
    builder = (
        x509.CertificateBuilder()
        .subject_name(plain.subject)
        .issuer_name(plain.issuer)
        .public_key(key.public_key())
        .serial_number(plain.serial_number)
        .not_valid_before(plain.not_valid_before_utc)
        .not_valid_after(plain.not_valid_after_utc)
    )
    for extension in plain.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    oid = x509.PrecertificateSignedCertificateTimestamps.oid
    builder = builder.add_extension(x509.UnrecognizedExtension(oid, content), critical=False)
    return builder.sign(forge.keys.ca, hashes.SHA256())
