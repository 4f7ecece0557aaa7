"""Who signs with an embedded trust."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from supply_chain.trust.embedded import private
from supply_chain.trust.embedded.issuer import Issuer


@dataclass(frozen=True, slots=True)
class EmbeddedTrust:
    """The trust in `folder`, whose identity issuer is named `issuer`, a URL."""

    folder: Path
    issuer: str
    default_identity: ClassVar[str] = "disk-image@localhost"

    def issue_token(self, identity: str | None = None) -> str:
        """An identity token for `identity`, an email address or an absolute URI (None: `default_identity`).

        It is a secret while it lasts, some minutes. Raises TokenError for another identity, TrustError
        when the issuer's key can't be read.
        """
        issuer = Issuer(self.issuer, private.load_key(self.folder, "issuer"))
        return issuer.issue(self.default_identity if identity is None else identity)
