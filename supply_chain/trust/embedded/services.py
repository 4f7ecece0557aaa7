"""The services of an embedded trust, at one loopback port.

/api/v2/signingCert, trustBundle, configuration      the certificate authority (authority.py)
/api/v2/log/entries, checkpoint, tile/…              the transparency log (transparency_log.py)
/api/v1/timestamp, timestamp/certchain               the timestamper (timestamper.py)
/ct/v1/…                                             the certificate log (certificate_log.py)
/.well-known/openid-configuration, /jwks             the identity issuer (issuer.py); it gives no token here
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cryptography import x509

from supply_chain.errors import TrustError
from supply_chain.trust.certificates import spki
from supply_chain.trust.embedded import private
from supply_chain.trust.embedded.answers import Answer, Refused, Request, as_json
from supply_chain.trust.embedded.authority import CertificateAuthority
from supply_chain.trust.embedded.certificate_log import CertificateLog
from supply_chain.trust.embedded.create import served_at
from supply_chain.trust.embedded.issuer import Issuer
from supply_chain.trust.embedded.log_file import LogFile
from supply_chain.trust.embedded.server import serving
from supply_chain.trust.embedded.timestamper import Timestamper
from supply_chain.trust.embedded.transparency_log import TransparencyLog

if TYPE_CHECKING:
    from supply_chain.trust.embedded.identity import EmbeddedTrust
    from supply_chain.trust.trust import Trust


@asynccontextmanager
async def running(
    trust: Trust, *, port: int = 0, certificate_roots: Sequence[x509.Certificate] = ()
) -> AsyncIterator[Trust]:
    """The trust with its services up: an embedded one's are started on 127.0.0.1, at any free port when
    `port` is 0, and yielded is the trust with their URLs. Any other trust is yielded as it is.

    `certificate_roots` are further authorities whose certificates the certificate log takes. Raises
    TrustError when the trust's secret half can't be read or does not fit, or the port is taken.
    """
    if trust.embedded is None:
        yield trust
        return
    services = Services(trust, trust.embedded, certificate_roots)
    async with serving(services.answer, port) as url:
        services.url = url
        yield replace(trust, config=served_at(url))


class Services:
    """All services of an embedded trust, by path. `url` is where they are served."""

    def __init__(
        self, trust: Trust, embedded: EmbeddedTrust, certificate_roots: Sequence[x509.Certificate] = ()
    ) -> None:
        folder = embedded.folder
        keys = private.load_keys(folder)
        root = trust.root
        authority, timestamper = (
            tuple(x509.load_der_x509_certificate(one.raw_bytes) for one in chain[0].cert_chain.certificates)
            for chain in (root.certificate_authorities, root.timestamp_authorities)
        )
        for name, key, trusted in (
            ("ca", keys.ca, spki(authority[0].public_key())),
            ("tsa", keys.tsa, spki(timestamper[0].public_key())),
            ("log", keys.log, root.tlogs[0].public_key.raw_bytes),
            ("ct", keys.ct, root.ctlogs[0].public_key.raw_bytes),
        ):
            if spki(key.public_key()) != trusted:
                raise TrustError(
                    f"{folder / private.PRIVATE / name}.pem: is not the key that the trusted root names",
                    "restore the folder as a whole from a backup, or make a new trust",
                )
        folder = folder / private.PRIVATE
        self.url = ""
        self._issuer = Issuer(embedded.issuer, keys.issuer)
        origin = urlsplit(root.tlogs[0].base_url).hostname or ""
        certificate_log = CertificateLog(LogFile(folder / "ct"), keys.ct, (authority[0], *certificate_roots))
        self._certificate_log = certificate_log
        self._authority = CertificateAuthority(authority[0], keys.ca, self._issuer, certificate_log)
        self._log = TransparencyLog(LogFile(folder / "log"), keys.log, origin)
        self._timestamper = Timestamper(timestamper, keys.tsa)

    def answer(self, request: Request) -> Answer:
        """Carry out one request; may block on the disk. Raises Refused, TrustError."""
        path = request.path
        if path.startswith("/ct/v1/"):
            return self._certificate_log.answer(request)
        if path in ("/api/v2/signingCert", "/api/v2/trustBundle", "/api/v2/configuration"):
            return self._authority.answer(request)
        if path.startswith("/api/v2/"):
            return self._log.answer(request)
        if path.startswith("/api/v1/timestamp"):
            return self._timestamper.answer(request)
        if request.method == "GET" and path == "/.well-known/openid-configuration":
            return as_json(self._issuer.discovery(self.url))
        if request.method == "GET" and path == "/jwks":
            return as_json(self._issuer.jwks())
        raise Refused("no service has this path", 404)
