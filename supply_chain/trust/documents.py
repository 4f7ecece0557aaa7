"""The three documents of a trust, and the folder that holds them.

    trusted_root.json      what is trusted: authorities, logs, timestampers
    signing_config.json    where to sign: the URLs of the services
    trust.json             both in one, a ClientTrustConfig

Formats: https://github.com/sigstore/protobuf-specs (sigstore_trustroot.proto), as JSON of protobuf. Files
are written whole or not at all, and an existing folder is never touched.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from supply_chain.errors import TrustError
from supply_chain.trust.certificates import der, key_id, spki

TRUSTED_ROOT = "trusted_root.json"
SIGNING_CONFIG = "signing_config.json"
TRUST = "trust.json"

TRUSTED_ROOT_TYPE = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
SIGNING_CONFIG_TYPE = "application/vnd.dev.sigstore.signingconfig.v0.2+json"
TRUST_TYPE = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority or a timestamper: `chain` from its own certificate to the root."""

    url: str
    chain: Sequence[x509.Certificate]


@dataclass(frozen=True, slots=True)
class Log:
    """A log: its key, and the URL whose host is the origin of its checkpoints."""

    url: str
    key: PublicKeyTypes


@dataclass(frozen=True, slots=True)
class Services:
    """Where to sign. `timestamper` is the whole URL that takes queries."""

    authority: str
    issuer: str
    log: str
    timestamper: str


def trusted_root(
    *,
    authorities: Sequence[Authority],
    logs: Sequence[Log],
    certificate_logs: Sequence[Log],
    timestampers: Sequence[Authority],
    start: datetime,
) -> Json:
    """A TrustedRoot of what is valid from `start` on. Raises TrustError for a key of an unsupported kind."""
    return {
        "mediaType": TRUSTED_ROOT_TYPE,
        "tlogs": [_log(log, start) for log in logs],
        "certificateAuthorities": [_authority(one, start) for one in authorities],
        "ctlogs": [_log(log, start) for log in certificate_logs],
        "timestampAuthorities": [_authority(one, start) for one in timestampers],
    }


def signing_config(services: Services, *, operator: str, start: datetime) -> Json:
    """A SigningConfig with one service of each kind."""

    def service(url: str, version: int = 1) -> list[Json]:
        valid = {"start": _time(start)}
        return [{"url": url, "majorApiVersion": version, "validFor": valid, "operator": operator}]

    return {
        "mediaType": SIGNING_CONFIG_TYPE,
        "caUrls": service(services.authority),
        "oidcUrls": service(services.issuer),
        "rekorTlogUrls": service(services.log, 2),
        "rekorTlogConfig": {"selector": "ANY"},
        "tsaUrls": service(services.timestamper),
        "tsaConfig": {"selector": "ANY"},
    }


def client_trust_config(root: Json, config: Json) -> Json:
    """Both in one."""
    return {"mediaType": TRUST_TYPE, "trustedRoot": root, "signingConfig": config}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when all went well. Raises TrustError when there is one."""
    if folder.exists() or folder.is_symlink():
        raise _exists(folder)
    try:
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise TrustError(
            f"{folder}: can't be made: {error.strerror}",
            "name a folder whose parent exists and can be written",
        ) from None
    try:
        yield new
        new.chmod(0o755)
        for path in (*new.rglob("*"), new):
            _sync(path)
        try:
            new.rename(folder)
        except OSError:
            raise _exists(folder) from None
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def write_documents(folder: Path, root: Json, config: Json) -> None:
    """Write the three documents into a folder of `new_folder`."""
    documents: Mapping[str, Json] = {
        TRUSTED_ROOT: root,
        SIGNING_CONFIG: config,
        TRUST: client_trust_config(root, config),
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n")
        (folder / name).chmod(0o644)


def _exists(folder: Path) -> TrustError:
    return TrustError(
        f"{folder}: exists, and a trust is never overwritten",
        "name a new folder; to trust something else from now on, keep the old one for what it signed",
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _authority(authority: Authority, start: datetime) -> Json:
    root = authority.chain[-1]
    return {
        "subject": {
            "organization": _attribute(root, x509.NameOID.ORGANIZATION_NAME),
            "commonName": _attribute(root, x509.NameOID.COMMON_NAME),
        },
        "uri": authority.url,
        "certChain": {"certificates": [{"rawBytes": _base64(der(one))} for one in authority.chain]},
        "validFor": {"start": _time(start)},
    }


def _log(log: Log, start: datetime) -> Json:
    return {
        "baseUrl": log.url,
        "hashAlgorithm": "SHA2_256",
        "publicKey": {
            "rawBytes": _base64(spki(log.key)),
            "keyDetails": _key_details(log),
            "validFor": {"start": _time(start)},
        },
        "logId": {"keyId": _base64(key_id(log.key))},
    }


def _key_details(log: Log) -> str:
    match log.key:
        case ec.EllipticCurvePublicKey() as key if key.curve.name == "secp256r1":
            return "PKIX_ECDSA_P256_SHA_256"
        case ec.EllipticCurvePublicKey() as key if key.curve.name == "secp384r1":
            return "PKIX_ECDSA_P384_SHA_384"
        case ed25519.Ed25519PublicKey():
            return "PKIX_ED25519"
        case rsa.RSAPublicKey() as key if key.key_size in (2048, 3072, 4096):
            return f"PKIX_RSA_PKCS1V15_{key.key_size}_SHA256"
    raise TrustError(
        f"the key of the log {log.url} is of a kind that Sigstore clients do not know",
        "they know ECDSA P-256 and P-384, Ed25519, and RSA of 2048, 3072 and 4096 bits",
    )


def _attribute(certificate: x509.Certificate, name: x509.ObjectIdentifier) -> str:
    found = certificate.subject.get_attributes_for_oid(name)
    return str(found[0].value) if found else ""


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
