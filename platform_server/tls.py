"""TLS: the certificate and its key, checked before they are used, and again when they were renewed.

1. key: nobody but its owner and its group may read it.
2. pair: both are PEM, the key has no passphrase, and is that of the certificate.
3. protocol: TLS 1.2 or newer, and ciphers with forward secrecy that authenticate what they encrypt
   (RFC 9325, 4.2).
"""

from __future__ import annotations

import logging
import ssl
import stat
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from platform_server.errors import StateError
from platform_server.metrics import CERTIFICATE_EXPIRES

log = logging.getLogger(__name__)

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_OTHERS = stat.S_IRWXO


class Tls:
    """A certificate that is served. Raises StateError when it, or its key, can't be."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._current = self._checked()
        self.context = self._checked()
        self.context.sni_callback = self._choose

    def reload(self) -> None:
        """Use what is in the files now, for new connections. Raises StateError, and nothing changes."""
        self._current = self._checked()
        log.info("the certificate was read again", extra={"certificate": str(self._certificate)})

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext
    ) -> None:
        """Called for each connection, whether it names a server or not."""
        connection.context = self._current

    def _checked(self) -> ssl.SSLContext:
        """Both files in a context of their own."""
        try:
            mode = self._key.stat().st_mode
        except OSError as error:
            raise StateError(f"{self._key}: {error.strerror}", "--tls-key names the key's file") from None
        if mode & _OTHERS:  # 1
            raise StateError(
                f"{self._key}: expected a key that others can't read, found mode {stat.S_IMODE(mode):04o}",
                f"chmod o= {self._key}",
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_passphrase)  # 2
            leaf = x509.load_pem_x509_certificates(self._certificate.read_bytes())[0]
        except (OSError, ValueError) as error:
            raise self._explained(error) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # 3
        context.set_ciphers(_CIPHERS)
        expires = leaf.not_valid_after_utc
        CERTIFICATE_EXPIRES.set(expires.timestamp())
        if expires < datetime.now(UTC):
            log.warning("the certificate is no longer valid", extra={"expires": expires.isoformat()})
        return context

    def _explained(self, error: OSError | ValueError) -> StateError:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            return StateError(
                f"{self._key}: not the key of {self._certificate}", "name the key that it was made with"
            )
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
            return StateError(
                f"{error.filename or self._certificate}: {error.strerror or error}",
                "--tls-certificate and --tls-key name files that the platform's user can read",
            )
        return StateError(
            f"{self._certificate}, {self._key}: expected a certificate and its key in PEM, without a "
            f"passphrase ({error})",
            "the server's certificate comes first in its file, its authorities after it",
        )


def _no_passphrase() -> str:
    # OpenSSL would ask for it on the terminal.
    raise ValueError("the key has a passphrase")
