"""What the platform refuses, with the HTTP status that says so.

    DiskImageError            a failure with what to do about it (pipelines.errors)
    ├── StateError            the state folder or its database can't be used
    ├── BackupError           a backup can't be made, or is not one to restore
    └── Refused               a request that is not carried out; `status` is the HTTP status
        ├── Invalid           422: `field`, `value` and `rule`
        ├── Unauthenticated   401: no token, or none that is known
        ├── Forbidden         403: the token lacks a permission
        ├── Missing           404: not there, or another account's, which looks the same
        ├── Conflict          409: it contradicts what is there
        ├── TooLarge          413
        ├── TooOften          429: `retry_after` seconds
        ├── TooSlow           408
        └── Unavailable       503: the database does not answer; `retry_after` seconds
            └── Unwritable    its disk is full, it is read-only, or its file can't be written

Every text may be shown to whoever sent the request, so none may hold a secret of somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import DiskImageError

_SHOWN = 80
_FIELD = re.compile(r"[A-Za-z0-9_]{1,64}")


class StateError(DiskImageError):
    """The state folder, its key or its database is missing, out of reach, foreign, or has another schema."""


class BackupError(DiskImageError):
    """A backup can't be made, or is damaged, tampered with, foreign, or not for this place."""


class Refused(DiskImageError):
    """A request is not carried out, and nothing was changed."""

    status = 400


@dataclass(eq=False)
class Invalid(Refused):
    """A field breaks a rule."""

    what: str = ""
    hint: str = "correct the field, then send it again"
    field: str = ""
    value: object = None
    rule: str = ""

    status = 422

    def __post_init__(self) -> None:
        self.what = self.what or f"{self.field}: expected {self.rule}, found {shown(self.value)}"


class Unauthenticated(Refused):
    """There is no token, or the platform does not know it."""

    status = 401


class Forbidden(Refused):
    """The token is known and lacks a permission."""

    status = 403


class Missing(Refused):
    """There is no such thing in the caller's account."""

    status = 404


class Conflict(Refused):
    """The request contradicts what is there."""

    status = 409


class TooLarge(Refused):
    """More bytes than the platform reads."""

    status = 413


class TooSlow(Refused):
    """The request did not arrive in time."""

    status = 408


@dataclass(eq=False)
class TooOften(Refused):
    """More requests than the platform takes."""

    retry_after: float = 1.0

    status = 429


@dataclass(eq=False)
class Unavailable(Refused):
    """What the platform needs is away, and comes back."""

    retry_after: float = 5.0

    status = 503


@dataclass(eq=False)
class Unwritable(Unavailable):
    """The database answers and takes no writes: somebody has to see to it.

    503 and not 507: senders of webhooks, curl among them, send 503 again by themselves, and RFC 4918 (11.5)
    has nobody repeat what was answered with 507.
    """

    retry_after: float = 30.0


def missing(kind: str, name: object) -> Missing:
    """The Missing of one thing by its id or name."""
    return Missing(
        f"{kind} {shown(name)}: not in this account", f"list what is there, then name one of the {kind}s"
    )


def broken_rule(found: Mapping[str, Any], inside: int = 0) -> Invalid:
    """A finding of pydantic's as an Invalid: field, rule, value. `inside` is how many outer parts of the
    field's place are the request's own.
    """
    place = found["loc"]
    # A field that is one too many has the name that its sender gave it.
    field = ".".join(
        str(part) if _FIELD.fullmatch(str(part)) else shown(part) for part in place[inside:] or place[:1]
    )
    # pydantic quotes what breaks a rule as it is
    rule = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in found["msg"])
    value = "" if found["type"] == "missing" else f", found {shown(found.get('input'))}"
    return Invalid(
        what=f"{field or 'parameters'}: {rule}{value}",
        field=field,
        value=found.get("input"),
        rule=rule,
    )


def shown(value: object) -> str:
    """A value from outside as it may stand in an error: printable, and no longer than a line."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
