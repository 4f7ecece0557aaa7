"""Fulcio, with a root of its own and a certificate log that others serve. It opens its metrics port on all
addresses, so it runs in a network namespace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.peers.programs import go_program
from tests.peers.server import serving

URL = "http://127.0.0.1:5811"
_PASSWORD = b"not a secret"


@dataclass(frozen=True)
class Root:
    """A certificate authority's certificate and encrypted key, both as PEM files."""

    certificate: Path
    key: Path


def make_root(folder: Path) -> Root:
    """A new one, made beforehand, since the certificate log must know it before Fulcio starts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=private Fulcio,O=test")
    start = datetime.now(UTC) - timedelta(hours=1)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    root = Root(folder / "fulcio.pem", folder / "fulcio-key.pem")
    root.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    root.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(_PASSWORD),
        )
    )
    return root


@contextmanager
def fulcio(
    folder: Path, root: Root, issuers: Mapping[str, object], certificate_log: str, network: Sequence[str]
) -> Iterator[str]:
    """Run it for `issuers` (its FulcioConfig, as JSON), logging to the RFC 6962 log at the URL
    `certificate_log`. Gives its own URL.
    """
    config = folder / "fulcio.json"
    config.write_text(json.dumps(issuers))
    argv: list[str | Path] = [
        go_program("fulcio"), "serve", f"--config-path={config}", f"--ct-log-url={certificate_log}",
        "--ca=fileca", f"--fileca-cert={root.certificate}", f"--fileca-key={root.key}",
        f"--fileca-key-passwd={_PASSWORD.decode()}", "--fileca-watch=false",
        "--host=127.0.0.1", "--port=5811", "--grpc-host=127.0.0.1", "--grpc-port=5812",
        "--metrics-port=5813",
    ]  # fmt: skip
    with serving(argv, f"{URL}/healthz", folder / "fulcio.log", network=network):
        yield URL
