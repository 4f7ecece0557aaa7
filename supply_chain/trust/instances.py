"""Make a trust for services of others: the public Sigstore instance, or a private one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from pipelines.errors import UsageError
from supply_chain.errors import TrustError
from supply_chain.trust import documents
from supply_chain.trust.service_client import service_client


@dataclass(frozen=True, slots=True)
class Instance:
    """A private instance: URLs of its services, and PEM files of what can't be asked of them.

    `timestamper` is the whole URL that takes queries (…/api/v1/timestamp). A chain that is None is asked
    of its service.
    """

    authority: str
    log: str
    timestamper: str
    issuer: str
    log_key: Path
    certificate_log_key: Path
    authority_chain: Path | None = None
    timestamper_chain: Path | None = None


def init_public(folder: Path) -> None:
    """Make a trust in the public instance from the copy of its documents in the installed sigstore-python,
    without a network. Raises TrustError when `folder` exists.
    """
    from sigstore._internal.tuf import DEFAULT_TUF_URL
    from sigstore._utils import read_embedded

    with documents.new_folder(folder) as new:
        root = json.loads(read_embedded("trusted_root.json", DEFAULT_TUF_URL))
        config = json.loads(read_embedded("signing_config.v0.2.json", DEFAULT_TUF_URL))
        documents.write_documents(new, root, config)


async def init_instance(folder: Path, instance: Instance) -> None:
    """Make a trust in a private instance. What is asked of a service is believed: compare the fingerprints.

    Raises TrustError when `folder` exists, a file or an answer can't be used, or a service gives none;
    UsageError for a URL that is none.
    """
    urls = documents.Services(
        # clients put paths behind these; an issuer's name is compared letter for letter
        authority=_url("--fulcio", instance.authority).rstrip("/"),
        issuer=_url("--issuer", instance.issuer),
        log=_url("--rekor", instance.log).rstrip("/"),
        timestamper=_url("--tsa", instance.timestamper).rstrip("/"),
    )
    log_key, certificate_log_key = _key(instance.log_key), _key(instance.certificate_log_key)
    async with service_client() as client:
        if instance.authority_chain:
            chains = [_ordered(read_certificates(instance.authority_chain), str(instance.authority_chain))]
        else:
            answered = await client.authority_chains(urls.authority)
            chains = [_ordered(chain, urls.authority) for chain in answered]
        if instance.timestamper_chain:
            where, given = str(instance.timestamper_chain), read_certificates(instance.timestamper_chain)
        else:
            where, given = urls.timestamper, await client.timestamper_chain(urls.timestamper)
    timestamper = _ordered(given, where)
    _check_timestamper(timestamper, where)
    start = min(chain[0].not_valid_before_utc for chain in (*chains, timestamper))
    root = documents.trusted_root(
        authorities=[documents.Authority(urls.authority, chain) for chain in chains],
        logs=[documents.Log(urls.log, log_key)],
        # no client asks a certificate log anything: it is named after the authority that uses it
        certificate_logs=[documents.Log(urls.authority, certificate_log_key)],
        timestampers=[documents.Authority(urls.timestamper, timestamper)],
        start=start,
    )
    operator = urlsplit(urls.authority).hostname or ""
    with documents.new_folder(folder) as new:
        documents.write_documents(new, root, documents.signing_config(urls, operator=operator, start=start))


def _url(flag: str, url: str) -> str:
    """The URL, when it is one that a service can have."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and not (parts.username or parts.query)
    except ValueError:
        fine = False
    if not fine:
        raise UsageError(
            # what may be a password is left out
            f"{flag} {url.rpartition('@')[2][:200]!r} is no URL of a service",
            "give it as https://host or https://host:port",
        )
    return url


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrustError(f"{path}: {error.strerror}", "name a PEM file") from None


def _key(path: Path) -> PublicKeyTypes:
    try:
        return load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise TrustError(
            f"{path}: is no public key in PEM", "name the log's public key, as its operator gives it"
        ) from None


def read_certificates(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file. Raises TrustError."""
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        raise TrustError(
            f"{path}: holds no certificates in PEM", "name a file with the chain up to its root"
        ) from None


def _ordered(certificates: list[x509.Certificate], where: str) -> list[x509.Certificate]:
    """The chain from its own certificate to the root, in whatever order it came. Raises TrustError for
    another.
    """
    roots = [one for one in certificates if one.issuer == one.subject]
    if len(roots) != 1:
        raise TrustError(
            f"{where}: of {len(certificates)} certificates {len(roots)} are roots, expected exactly one",
            "give one whole chain: the service's own certificate, what issued it, up to the root",
        )
    chain, rest = roots, [one for one in certificates if one not in roots]
    while rest:
        below = [one for one in rest if one.issuer == chain[0].subject]
        if len(below) != 1:
            raise TrustError(
                f"{where}: its {len(certificates)} certificates are no chain", "give one whole chain"
            )
        chain = [*below, *chain]
        rest.remove(below[0])
    for subject, issuer in pairwise([*chain, chain[-1]]):
        try:
            subject.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            name = subject.subject.rfc4514_string()
            raise TrustError(
                f"{where}: the signature of the certificate {name!r} does not hold", "give the true chain"
            ) from None
    return chain


def _check_timestamper(chain: list[x509.Certificate], where: str) -> None:
    try:
        usage = chain[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
    if len(chain) < 2 or ExtendedKeyUsageOID.TIME_STAMPING not in usage:
        raise TrustError(
            f"{where}: does not lead from a certificate for time stamping to its root",
            "Sigstore clients need both, the timestamper's own certificate first",
        )
