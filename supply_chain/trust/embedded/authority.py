"""A certificate authority that gives code signing certificates for identity tokens: Fulcio's HTTP interface.

Certificates are as Fulcio's certificate specification has them
(https://github.com/sigstore/fulcio/blob/main/docs/certificate-specification.md).
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from supply_chain.errors import TokenError
from supply_chain.trust.certificates import issued_by, key_usage, pem
from supply_chain.trust.embedded.answers import Answer, Refused, Request, as_json, json_object
from supply_chain.trust.embedded.certificate_log import CertificateLog
from supply_chain.trust.embedded.issuer import AUDIENCE, Issuer, is_email

LIFETIME = timedelta(minutes=10)

_ISSUER_V1 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_TIMESTAMPS = x509.PrecertificateSignedCertificateTimestamps.oid


class CertificateAuthority:
    """The authority of `certificate`, a root, and its key; certificates go to `log` first."""

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        issuer: Issuer,
        log: CertificateLog,
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._issuer = issuer
        self._log = log

    def answer(self, request: Request) -> Answer:
        """The HTTP interface below /api/v2/. Raises Refused, TrustError."""
        match request.method, request.path:
            case "POST", "/api/v2/signingCert":
                return self._signing_certificate(request)
            case "GET", "/api/v2/trustBundle":
                return as_json({"chains": [{"certificates": [pem(self._certificate)]}]})
            case "GET", "/api/v2/configuration":
                return as_json({"issuers": [{"issuerUrl": self._issuer.url, "audience": AUDIENCE}]})
        raise Refused("the certificate authority has no such method", 404)

    def _signing_certificate(self, request: Request) -> Answer:
        """(1) The token is the issuer's, for this audience and time. (2) Who asks has the key: the
        signature of the request (PKCS #10), or one over the token's subject. (3) The certificate is for
        the token's subject, whatever name the request carries.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refused("no identity token: Authorization: Bearer is missing", 401)
        try:
            identity = self._issuer.identity(token)  # (1)
        except TokenError as error:
            raise Refused(f"There was an error processing the identity token: {error.what}") from None
        key = _proven_key(json_object(request.body), identity)  # (2)
        leaf = self._issue(key, identity)  # (3)
        return as_json(
            {
                "signedCertificateEmbeddedSct": {
                    "chain": {"certificates": [pem(leaf), pem(self._certificate)]}
                }
            }
        )

    def _issue(self, key: ec.EllipticCurvePublicKey, identity: str) -> x509.Certificate:
        now = datetime.now(UTC).replace(microsecond=0)
        name = x509.RFC822Name(identity) if is_email(identity) else x509.UniformResourceIdentifier(identity)
        issuer = self._issuer.url
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + LIFETIME)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issued_by(self._certificate), critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_V1, issuer.encode()), critical=False)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_V2, asn1.encode_der(issuer)), critical=False)
        )
        poisoned = builder.add_extension(x509.PrecertPoison(), critical=True)
        timestamp = self._log.add([poisoned.sign(self._key, hashes.SHA256()), self._certificate])
        # last, so that what the log signed is this certificate without it, byte for byte
        timestamps = x509.UnrecognizedExtension(
            _TIMESTAMPS, asn1.encode_der(_prefixed(_prefixed(timestamp)))
        )
        return builder.add_extension(timestamps, critical=False).sign(self._key, hashes.SHA256())


def _prefixed(content: bytes) -> bytes:
    """opaque<0..2^16-1> of RFC 5246: the list of timestamps, and each in it (RFC 6962 section 3.3)."""
    return len(content).to_bytes(2, "big") + content


def _proven_key(request: dict[str, object], identity: str) -> ec.EllipticCurvePublicKey:
    """The key that whoever asks has proven to have. Raises Refused."""
    try:
        if csr := request.get("certificateSigningRequest"):
            signing_request = x509.load_pem_x509_csr(_decoded(csr))
            if not signing_request.is_signature_valid:
                raise Refused("The signature supplied in the request could not be verified")
            return _strong(signing_request.public_key())
        match request.get("publicKeyRequest"):
            case {"publicKey": {"content": str(content)}, "proofOfPossession": proof}:
                key = _strong(load_pem_public_key(content.encode()))
                key.verify(_decoded(proof), identity.encode(), ec.ECDSA(_hash(key)))
                return key
    except InvalidSignature:
        raise Refused("The signature supplied in the request could not be verified") from None
    except (ValueError, TypeError, UnsupportedAlgorithm, binascii.Error):
        raise Refused("The certificate request or public key could not be read") from None
    raise Refused("neither certificateSigningRequest nor publicKeyRequest")


def _decoded(value: object) -> bytes:
    if not isinstance(value, str):
        raise TypeError
    return base64.b64decode(value, validate=True)


def _strong(key: object) -> ec.EllipticCurvePublicKey:
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1
    ):
        return key
    raise Refused("The public key supplied in the request is insecure: use P-256, P-384 or P-521")


def _hash(key: ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    return {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[key.curve.key_size]
