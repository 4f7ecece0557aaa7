"""What an operator can set, and every limit with its default, in one place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from platform_server.errors import Invalid

_K = 1024
_MOST_WORKERS = 64

# A host that is no IPv6 address may have underscores: names in container networks do.
_PUBLIC_URL = re.compile(
    r"(https?://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?)((?:/[!-~]*)?)", re.IGNORECASE
)


def public_url_of(text: str) -> str:
    """Where others reach the platform: scheme and host in small letters, as clients send them (RFC 3986,
    6.2.2.1), no slash at its end. Raises Invalid, which does not show it: it may hold a password.
    """
    found = _PUBLIC_URL.fullmatch(text)
    if found is None or set(found[2]) & set("?#@"):
        raise Invalid(
            what="--public-url: expected http://HOST[:PORT][/PATH] or https, found something else",
            field="--public-url",
            hint="--public-url https://platform.example",
        )
    return f"{found[1].lower()}{found[2]}".rstrip("/")


def _limit(default: float, least: float, most: float, what: str, then: str) -> Any:
    """A limit: its default, what it may be set to, what it bounds, and what becomes of what goes beyond."""
    return field(default=default, metadata={"least": least, "most": most, "what": what, "then": then})


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds, rates a second; all of them count for one process.

    `serve --limit NAME=VALUE` sets one, within its range: bodies that are held in memory stay small, and
    nothing waits for ever or not at all.
    """

    webhook_body: int = _limit(_K * 64, _K, _K * 1024, "a webhook's body, in bytes", "413 too_large")
    body: int = _limit(_K * 256, _K, _K**2 * 16, "any other JSON body, in bytes", "413")
    upload: int = _limit(_K**3 * 16, _K**2, _K**4, "an uploaded image, in bytes", "413")
    header: int = _limit(_K * 16, _K * 4, _K * 256, "request line and headers, in bytes", "400")
    handshake_seconds: float = _limit(10.0, 0.1, 300, "until a TLS handshake is done", "closed")
    header_seconds: float = _limit(
        10.0,
        0.1,
        300,
        "until the headers are there, and the rest of a body that was answered early",
        "closed",
    )
    body_seconds: float = _limit(
        20.0, 0.1, 600, "until a body is there; for uploads, between two pieces of it", "408"
    )
    read_seconds: float = _limit(
        30.0, 0.1, 600, "until a client takes more of an answer that waits for it", "closed"
    )
    keep_alive_seconds: int = _limit(30, 1, 3600, "a connection without a request", "closed")
    connections: int = _limit(1000, 1, 100_000, "connections at once", "503")
    address_connections: int = _limit(
        250, 1, 100_000, "connections at once from one address that is no proxy's", "closed"
    )
    deliveries: float = _limit(
        1000.0, 0.001, 100_000, "deliveries a second to one webhook", "429 rate_limited"
    )
    deliveries_burst: int = _limit(
        2000, 1, 1_000_000, "deliveries at once to one webhook", "429 rate_limited"
    )
    refusals: float = _limit(
        50.0, 0.001, 100_000, "refused deliveries a second from one address", "429 rate_limited"
    )
    refusals_burst: int = _limit(
        1000, 1, 1_000_000, "refused deliveries at once from one address", "429 rate_limited"
    )
    drain_seconds: float = _limit(
        3.0, 0, 3600, "from SIGTERM until new connections are refused, while /readyz says 503", "refused"
    )
    stop_seconds: int = _limit(30, 1, 3600, "after that, for requests under way", "cut off")


def limits_of(words: Iterable[str]) -> Limits:
    """The limits with those that are set as `NAME=VALUE`. Raises Invalid."""
    known = {each.name: each for each in fields(Limits)}
    chosen: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in known:
            raise Invalid(field="--limit", value=name, rule=f"one of {', '.join(known)}")
        whole = known[name].type == "int"
        least, most = known[name].metadata["least"], known[name].metadata["most"]
        value: float | None = None
        with suppress(ValueError):
            value = int(text) if whole else float(text)
        if value is None or not least <= value <= most:
            kind = "a whole number" if whole else "a number"
            raise Invalid(field=f"--limit {name}", value=text, rule=f"{kind} from {least} to {most}")
        chosen[name] = value
    limits = Limits(**chosen)
    if limits.webhook_body > limits.body:
        raise Invalid(
            field="--limit webhook_body", value=limits.webhook_body, rule=f"at most body, {limits.body}"
        )
    return limits


def workers_of(count: int) -> int:
    """How many verifications run side by side; 0 leaves them to other processes. Raises Invalid."""
    if not 0 <= count <= _MOST_WORKERS:
        raise Invalid(field="--workers", value=count, rule=f"a whole number from 0 to {_MOST_WORKERS}")
    return count


@dataclass(frozen=True, slots=True)
class Schedule:
    """When things expire and how often the platform looks for them."""

    # the clock difference that Standard Webhooks allows
    webhook_tolerance: timedelta = timedelta(minutes=5)
    # how long equal bodies without a webhook-id are one delivery
    plain_delivery: timedelta = timedelta(hours=24)
    # how long the secret before a rotation still counts
    rotation_overlap: timedelta = timedelta(hours=1)
    # how long a secret that an action made waits to be read
    secret_pickup: timedelta = timedelta(minutes=15)
    # an upload's URL, and how long a row waits for the upload
    upload: timedelta = timedelta(hours=1)
    # between retirement and purge
    grace: timedelta = timedelta(days=7)
    # when a row that is not finished is reported
    stuck: timedelta = timedelta(hours=1)
    sweep: timedelta = timedelta(days=1)
    # how often the Disk Image Manager looks for something to do
    manager: timedelta = timedelta(minutes=5)
    # how long an approval request waits, and a rejected one is not asked again
    approval: timedelta = timedelta(hours=12)
    rejection: timedelta = timedelta(hours=1)
    # one verification, how often it is tried, and how long a lease lasts without a sign of life
    lease: timedelta = timedelta(seconds=60)
    attempts: int = 5
    first_retry: timedelta = timedelta(seconds=15)
    longest_retry: timedelta = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Registries:
    """Which registries are asked at all, besides those that a node platform trusts itself."""

    # `host[:port]` or `host[:port]/path`
    trusted: tuple[str, ...] = ()
    # `host[:port]` of those that may have a private address
    private: tuple[str, ...] = ()
    # speak plain HTTP to registries on this machine
    plain_http: bool = False
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `serve` was told."""

    public_url: str = "http://127.0.0.1:8000"
    # a trust that signatures are verified with; without one nothing can be verified
    trust: Path | None = None
    workers: int = 1
    # addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed
    proxies: tuple[str, ...] = ()
    limits: Limits = Limits()
    schedule: Schedule = Schedule()
    registries: Registries = Registries()
