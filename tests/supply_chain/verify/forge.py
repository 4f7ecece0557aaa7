"""Sigstore bundles made with an embedded trust's own keys, honestly or with any part of them wrong."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from rfc3161_client import TimestampRequestBuilder

from supply_chain.referrer import BUNDLE
from supply_chain.statement import PAYLOAD_TYPE
from supply_chain.trust import Trust
from supply_chain.trust.certificates import der
from supply_chain.trust.checkpoint import sign_checkpoint
from supply_chain.trust.embedded import private
from supply_chain.trust.embedded.answers import Request
from supply_chain.trust.embedded.certificate_log import CertificateLog
from supply_chain.trust.embedded.log_file import LogFile
from supply_chain.trust.embedded.merkle import leaf_hash
from supply_chain.trust.embedded.timestamper import Timestamper
from supply_chain.trust.embedded.transparency_log import TransparencyLog

IDENTITY = "https://git.example/org/os/.gitea/workflows/image.yml@refs/heads/main"
ISSUER = "https://git.example/api/actions/oidc"
ORIGIN = "log.disk-image.internal"
ISSUER_V1 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
ISSUER_V2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")

Json = dict[str, Any]


@dataclass(frozen=True)
class Names:
    """What a certificate says, and for how long."""

    identity: str = IDENTITY
    issuer: str = ISSUER
    more_names: Sequence[x509.GeneralName] = ()
    age: timedelta = timedelta(minutes=1)
    lifetime: timedelta = timedelta(minutes=10)
    signs: bool = True
    code_signing: bool = True
    logged: bool = True
    old_issuer: str | None = None


HONEST = Names()


@dataclass
class Forge:
    """All keys of one embedded trust."""

    trust: Trust
    keys: private.Keys = field(init=False)
    authority: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        assert self.trust.embedded is not None
        folder = self.trust.embedded.folder
        self.keys = private.load_keys(folder)
        self.authority, stamper, stamper_root = (
            x509.load_der_x509_certificate(one.raw_bytes)
            for chain in (self.trust.root.certificate_authorities, self.trust.root.timestamp_authorities)
            for one in chain[0].cert_chain.certificates
        )
        self._stamper = Timestamper((stamper, stamper_root), self.keys.tsa)
        logs = folder / private.PRIVATE
        self._certificate_log = CertificateLog(LogFile(logs / "ct"), self.keys.ct, [self.authority])
        self._tree = LogFile(logs / "log")
        self._log = TransparencyLog(self._tree, self.keys.log, ORIGIN)

    def certificate(
        self, key: ec.EllipticCurvePrivateKey, names: Names = HONEST, *, at: datetime | None = None
    ) -> x509.Certificate:
        """A signing certificate for `key`, `names.age` before `at` (now)."""
        start = (at or datetime.now(UTC)).replace(microsecond=0) - names.age
        name = (
            x509.UniformResourceIdentifier(names.identity)
            if "://" in names.identity
            else x509.RFC822Name(names.identity)
        )
        usage = {
            name: name == "digital_signature" and names.signs
            for name in (
                "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
                "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
            )
        }  # fmt: skip
        purpose = ExtendedKeyUsageOID.CODE_SIGNING if names.code_signing else ExtendedKeyUsageOID.CLIENT_AUTH
        identifier = self.authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + names.lifetime)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
            )
            .add_extension(x509.SubjectAlternativeName([name, *names.more_names]), critical=True)
            .add_extension(
                x509.UnrecognizedExtension(ISSUER_V1, (names.old_issuer or names.issuer).encode()),
                critical=False,
            )
            .add_extension(
                x509.UnrecognizedExtension(ISSUER_V2, asn1.encode_der(names.issuer)), critical=False
            )
        )
        if names.logged:
            poisoned = builder.add_extension(x509.PrecertPoison(), critical=True)
            sct = self._certificate_log.add([poisoned.sign(self.keys.ca, hashes.SHA256()), self.authority])
            listed = _prefixed(_prefixed(sct))
            oid = x509.PrecertificateSignedCertificateTimestamps.oid
            builder = builder.add_extension(
                x509.UnrecognizedExtension(oid, asn1.encode_der(listed)), critical=False
            )
        return builder.sign(self.keys.ca, hashes.SHA256())

    def timestamp(self, signature: bytes) -> bytes:
        """A TimeStampResp, DER, over a signature, made now."""
        query = TimestampRequestBuilder().data(signature).nonce(nonce=True).build()
        return self._stamper.stamp(query.as_bytes())

    def log_entry(self, digest: bytes, signature: bytes, certificate: x509.Certificate) -> Json:
        """The log's entry for a signature over what has this sha256."""
        body = {
            "hashedRekordRequestV002": {
                "digest": b64(digest),
                "signature": {
                    "content": b64(signature),
                    "verifier": {
                        "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                        "x509Certificate": {"rawBytes": b64(der(certificate))},
                    },
                },
            }
        }
        request = Request("POST", "/api/v2/log/entries", body=json.dumps(body).encode())
        entry: Json = json.loads(self._log.answer(request).body)
        return entry

    def proven_later(self, entry: Json) -> Json:
        """An entry with its proof in the log's present, larger tree."""
        body = base64.b64decode(entry["canonicalizedBody"])
        size = self._tree.head().tree_size
        found = self._tree.find(leaf_hash(body), size)
        assert found is not None
        proof = {
            "logIndex": str(found.index),
            "treeSize": str(size),
            "rootHash": b64(found.root),
            "hashes": [b64(each) for each in found.proof],
            "checkpoint": {"envelope": sign_checkpoint(ORIGIN, size, found.root, self.keys.log)},
        }
        return {**entry, "inclusionProof": proof}

    def bundle(self, payload: bytes, names: Names = HONEST, *, payload_type: str = PAYLOAD_TYPE) -> Json:
        """A bundle with `payload` in its envelope, signed now by a new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self.bundle_of(payload, key, self.certificate(key, names), payload_type=payload_type)

    def bundle_of(
        self,
        payload: bytes,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        *,
        payload_type: str = PAYLOAD_TYPE,
    ) -> Json:
        """The same with this key and certificate, which need not fit each other for the certificate's sake:
        the log takes only what does.
        """
        signed = pae(payload_type, payload)
        signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
        return {
            "mediaType": BUNDLE,
            "verificationMaterial": {
                "certificate": {"rawBytes": b64(der(certificate))},
                "tlogEntries": [self.log_entry(hashlib.sha256(signed).digest(), signature, certificate)],
                "timestampVerificationData": {
                    "rfc3161Timestamps": [{"signedTimestamp": b64(self.timestamp(signature))}]
                },
            },
            "dsseEnvelope": {
                "payload": b64(payload),
                "payloadType": payload_type,
                "signatures": [{"sig": b64(signature)}],
            },
        }


def pae(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE envelope's signature is over."""
    return b"DSSEv1 %d %b %d %b" % (len(payload_type), payload_type.encode(), len(payload), payload)


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _prefixed(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content
