"""Make an embedded trust: keys, certificates, empty logs, and the documents that name them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from supply_chain.trust import documents
from supply_chain.trust.certificates import issued_by, key_usage
from supply_chain.trust.embedded import private
from supply_chain.trust.embedded.log_file import LogFile
from supply_chain.trust.embedded.transparency_log import TransparencyLog

if TYPE_CHECKING:
    from sigstore_models.trustroot.v1 import SigningConfig as ConfigDocument

# Where `trust serve` listens, and so what the documents say.
DEFAULT_PORT = 9462
# Names, not addresses: nothing is asked there. The log's host is the origin of its checkpoints, whatever
# port it is served at.
LOG_ORIGIN = "log.disk-image.internal"
_CT_URL = "https://ct.disk-image.internal"
_CA_URL = "https://ca.disk-image.internal"
_TSA_URL = "https://tsa.disk-image.internal"

OPERATOR = "disk-image"
_LIFETIME = timedelta(days=3650)


def init_embedded(folder: Path, *, port: int = DEFAULT_PORT) -> None:
    """Make an embedded trust in `folder`, which must not exist. Raises TrustError."""
    start = datetime.now(UTC).replace(microsecond=0)
    with documents.new_folder(folder) as new:
        keys = private.create(new)
        TransparencyLog(LogFile(new / private.PRIVATE / "log"), keys.log, LOG_ORIGIN).begin()
        ca = _root("disk-image embedded authority", keys.ca, start)
        # signs one certificate now and never another: it is not kept
        tsa_key = ec.generate_private_key(ec.SECP256R1())
        tsa_root = _root("disk-image embedded timestamp root", tsa_key, start)
        tsa = _timestamper(tsa_root, tsa_key, keys.tsa.public_key(), start)
        root = documents.trusted_root(
            authorities=[documents.Authority(_CA_URL, [ca])],
            logs=[documents.Log(f"https://{LOG_ORIGIN}", keys.log.public_key())],
            certificate_logs=[documents.Log(_CT_URL, keys.ct.public_key())],
            timestampers=[documents.Authority(_TSA_URL, [tsa, tsa_root])],
            start=start,
        )
        documents.write_documents(new, root, signing_config(f"http://127.0.0.1:{port}", start))


def signing_config(base_url: str, start: datetime) -> documents.Json:
    """The SigningConfig of embedded services that all are served at `base_url`."""
    services = documents.Services(
        authority=base_url, issuer=base_url, log=base_url, timestamper=f"{base_url}/api/v1/timestamp"
    )
    return documents.signing_config(services, operator=OPERATOR, start=start)


def served_at(base_url: str) -> ConfigDocument:
    """The signing configuration of an embedded trust while its services are at `base_url`."""
    from sigstore_models.trustroot.v1 import SigningConfig as ConfigDocument

    document = signing_config(base_url, datetime.fromtimestamp(0, UTC))
    return ConfigDocument.from_json(json.dumps(document))


def _root(name: str, key: ec.EllipticCurvePrivateKey, start: datetime) -> x509.Certificate:
    subject = _name(name)
    return (
        _certificate(subject, subject, key.public_key(), start)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _timestamper(
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    start: datetime,
) -> x509.Certificate:
    return (
        _certificate(_name("disk-image embedded timestamper"), root.subject, key, start)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        # RFC 3161 section 2.3: critical, and alone
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
        .add_extension(issued_by(root), critical=False)
        .sign(root_key, hashes.SHA256())
    )


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, OPERATOR),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name),
        ]
    )
