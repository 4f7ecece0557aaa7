"""The keys and certificates of a trust: their bytes, fingerprints, and what all of them say alike."""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def spki(key: PublicKeyTypes) -> bytes:
    """DER SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: PublicKeyTypes) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo: a log's id in RFC 6962 section 3.2 and in a trusted root."""
    return hashlib.sha256(spki(key)).digest()


def der(certificate: x509.Certificate) -> bytes:
    """The certificate's bytes."""
    return certificate.public_bytes(Encoding.DER)


def pem(certificate: x509.Certificate) -> str:
    """The certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM).decode()


def fingerprint(certificate: x509.Certificate) -> str:
    """`sha256:` and the hex digest of the certificate."""
    return f"sha256:{hashlib.sha256(der(certificate)).hexdigest()}"


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """RFC 5280 section 4.2.1.3: for certificates, or for anything else."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def issued_by(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """What a certificate says of the key that signed it."""
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
