"""What can go wrong between a pipeline and its platform.

    DiskImageError            a failure with what to do about it (pipelines.errors)
    └── PlatformError         anything below; exit code 1. The image stays as it is
        ├── Unreachable       no usable answer within the bound; asking again later may succeed
        ├── Refused           the platform says no, and why
        │   └── Conflict      it has something else under the same name
        └── NotThePlatform    an answer outside the contract: a redirect, a login page, too many bytes

No text here may hold a secret, a token, or more of a webhook's URL than its host: the rest names the
webhook.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import DiskImageError


@dataclass(eq=False)
class PlatformError(DiskImageError):
    """The platform refused or failed. `status` is its HTTP status (None: no answer came), `reason` its own
    word for it.
    """

    status: int | None = None
    reason: str | None = None


class Unreachable(PlatformError):
    """The platform gave no usable answer within the bound."""


class Refused(PlatformError):
    """The platform refuses this request; the same one will be refused again until something changes."""


class Conflict(Refused):
    """The platform has other content under the same commit, or the same delivery id."""


class NotThePlatform(PlatformError):
    """What answered does not speak the platform's contract."""
