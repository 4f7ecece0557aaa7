"""The port: what signs statements, whatever makes the signatures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SignedStatement:
    """A Sigstore bundle v0.3 as JSON, and the `time` that it proves to have been made at. It verifies with
    the trusted root of the trust that it was signed with.
    """

    bundle: bytes
    time: datetime


class Signer(Protocol):
    """Signs as one identity, by one certificate, for the minutes that it is valid."""

    @property
    def identity(self) -> str:
        """Whom the certificate names."""

    @property
    def issuer(self) -> str:
        """Who vouched for that identity, a URL."""

    async def sign(self, statement: bytes) -> SignedStatement:
        """Sign an in-toto statement as a DSSE envelope.

        Raises SigningError, and ServiceDown when the same call later may succeed.
        """
