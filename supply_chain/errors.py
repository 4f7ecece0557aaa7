"""What can go wrong with an artifact after it is built.

    DiskImageError                a failure with what to do about it (pipelines.errors)
    └── SupplyChainError          anything below; exit code 1
        ├── InvalidReference      a REF that does not name one repository; exit code 2
        ├── InvalidDocument       JSON that is no OCI document, or no in-toto statement
        ├── LayoutError           an OCI layout on disk that can't be read, or holds other bytes than it says
        ├── CredentialError       Docker's configuration or a credential helper can't be used
        ├── TrustError            a trust that can't be read, or whose parts don't fit each other
        ├── TokenError            no identity token, or one that the trust's issuer can't have made
        ├── SigningError          a signing service refused, or what it gave does not hold
        │   └── ServiceDown       it gave no usable answer within the bound; later it may
        ├── VerificationError     an image, or what hangs on it, is not to be trusted; names the step
        │   └── OtherSigner       it is signed, by somebody whom the policy does not name
        └── RegistryError         a registry's answer; carries its status and error codes
            ├── Unavailable       no usable answer within the bound of attempts and time
            ├── AccessDenied      401 or 403: no credential, a wrong one, or one without the right
            ├── NotFound          404
            ├── Rejected          another refusal that asking again does not heal
            ├── BrokenAnswer      an answer outside the protocol: an HTML page, no Location, too many bytes
            └── WrongContent      bytes that are not the ones their digest names

No text here may hold a credential, a token or the query of a URL (upload sessions and redirects sign
theirs).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import DiskImageError


class SupplyChainError(DiskImageError):
    """Something after the build failed; the built image is untouched."""


class InvalidReference(SupplyChainError):
    """A reference breaks the grammar; `what` quotes it without what may be a secret."""

    exit_code = 2


class InvalidDocument(SupplyChainError):
    """A document breaks its specification; `what` names document and field."""


class LayoutError(SupplyChainError):
    """An OCI layout on disk is incomplete, changed, or no layout at all."""


class CredentialError(SupplyChainError):
    """A credential that should be there can't be read."""


class TrustError(SupplyChainError):
    """A trust can't be read or used; `what` names the file and the part."""


class TokenError(SupplyChainError):
    """There is no identity token, or it can't serve: `what` has its issuer, audience and expiry."""


class SigningError(SupplyChainError):
    """A signing service refused for good, or gave what does not verify. The image is untouched."""


class ServiceDown(SigningError):
    """A signing service gave no usable answer within the bound; the same command later completes."""


@dataclass(eq=False)
class VerificationError(SupplyChainError):
    """An image is not to be trusted. `step` is the numbered step that refused it (verify/steps.py)."""

    step: str = ""
    expected: str = ""
    found: str = ""

    @property
    def where(self) -> str:
        return f"{self.step}: " if self.step else ""

    def to_json(self) -> dict[str, object]:
        named = {"step": self.step, "expected": self.expected, "found": self.found}
        return {**super().to_json(), **named}


@dataclass(eq=False)
class OtherSigner(VerificationError):
    """A signature by `signer`, whom the policy does not name."""

    signer: str = ""


@dataclass(eq=False)
class RegistryError(SupplyChainError):
    """A registry refused or failed: its HTTP `status` (None: no answer came) and its error `codes`."""

    status: int | None = None
    codes: tuple[str, ...] = ()


class Unavailable(RegistryError):
    """The registry gave no usable answer within the bound; asking again later may succeed."""


class AccessDenied(RegistryError):
    """The registry wants a credential, or another one."""


class NotFound(RegistryError):
    """The registry has no such manifest, blob or repository."""


class Rejected(RegistryError):
    """The registry refuses this request for good."""


class BrokenAnswer(RegistryError):
    """What answered does not speak the OCI distribution specification."""


class WrongContent(RegistryError):
    """The registry served other bytes than the digest names. They were thrown away."""
