"""What an operator can set, and every limit with its default, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds, rates a second."""

    # one webhook's body
    webhook_body: int = 64 * 1024
    # any other JSON body
    body: int = 256 * 1024
    # request line and headers
    header: int = 16 * 1024
    # until the headers are there, and until the body is
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    keep_alive_seconds: int = 30
    connections: int = 1000
    # what one webhook may deliver, and what one address may send that is refused
    deliveries: float = 1000.0
    deliveries_burst: int = 2000
    refusals: float = 50.0
    refusals_burst: int = 1000
    # one uploaded image
    upload: int = 16 * 1024**3


@dataclass(frozen=True, slots=True)
class Schedule:
    """When things expire and how often the platform looks for them."""

    # the clock difference that Standard Webhooks allows
    webhook_tolerance: timedelta = timedelta(minutes=5)
    # how long equal bodies without a webhook-id are one delivery
    plain_delivery: timedelta = timedelta(hours=24)
    # how long a webhook-id is remembered
    delivery: timedelta = timedelta(days=30)
    # how long the secret before a rotation still counts
    rotation_overlap: timedelta = timedelta(hours=1)
    # an upload's URL, and how long a row waits for the upload
    upload: timedelta = timedelta(hours=1)
    # between retirement and purge
    grace: timedelta = timedelta(days=7)
    # when a row that is not finished is reported
    stuck: timedelta = timedelta(hours=1)
    sweep: timedelta = timedelta(days=1)
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
