"""The secret half of an embedded trust, which never leaves the machine.

    private/issuer.pem   the identity issuer's key          private/log.pem    the transparency log's
    private/ca.pem       the certificate authority's        private/tsa.pem    the timestamper's
    private/ct.pem       the certificate log's              private/log, ct    the two logs (log_file.py)

Folders are 0700, files 0600. All keys are ECDSA P-256, in PKCS #8 without a passphrase: what protects them
is that only their owner can read them.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from supply_chain.errors import TrustError
from supply_chain.trust.embedded.log_file import LogFile

PRIVATE = "private"
_KEYS = ("issuer", "ca", "ct", "log", "tsa")


@dataclass(frozen=True, slots=True)
class Keys:
    """One key for each role."""

    issuer: ec.EllipticCurvePrivateKey
    ca: ec.EllipticCurvePrivateKey
    ct: ec.EllipticCurvePrivateKey
    log: ec.EllipticCurvePrivateKey
    tsa: ec.EllipticCurvePrivateKey


def create(folder: Path) -> Keys:
    """Make private/ in `folder`: new keys and two empty logs."""
    private = folder / PRIVATE
    private.mkdir(mode=0o700)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in _KEYS}
    for name, key in keys.items():
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        descriptor = os.open(private / f"{name}.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    for name in ("log", "ct"):
        LogFile.create(private / name)
    return Keys(**keys)


def load_key(folder: Path, name: str) -> ec.EllipticCurvePrivateKey:
    """One of the keys of the trust in `folder`. Raises TrustError when it can't be read, or others can
    read it.
    """
    private = folder / PRIVATE
    path = private / f"{name}.pem"
    try:
        for one in (private, path):
            if (mode := stat.S_IMODE(one.stat().st_mode)) & 0o077:
                raise TrustError(
                    f"{one}: others than its owner can read it: its mode is {mode:04o}",
                    f"if nobody did: chmod go= {one}; else make a new trust",
                )
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise TrustError(
            f"{path}: {error.strerror}", "sign on the machine where the trust was made, as its owner"
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise TrustError(f"{path}: is no ECDSA P-256 key", "restore it from a backup, or make a new trust")
    return key


def load_keys(folder: Path) -> Keys:
    """All keys of the trust in `folder`. Raises TrustError."""
    return Keys(**{name: load_key(folder, name) for name in _KEYS})
