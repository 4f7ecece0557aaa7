"""What a trust says, for people and for machines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cryptography import x509

from supply_chain.trust.certificates import fingerprint
from supply_chain.trust.trust import Trust

if TYPE_CHECKING:
    from sigstore_models.common.v1 import TimeRange
    from sigstore_models.trustroot.v1 import CertificateAuthority, Service, TransparencyLogInstance


@dataclass(frozen=True, slots=True)
class Period:
    """When something is trusted; None is without a bound. RFC 3339."""

    start: str | None
    end: str | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate of a chain; `sha256` is over its DER."""

    subject: str
    sha256: str
    valid: Period


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority or timestamper; its certificates lead to the root."""

    url: str
    trusted: Period
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class Log:
    """A log; `sha256` is over its key's DER SubjectPublicKeyInfo."""

    url: str
    trusted: Period
    key: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ServiceUrl:
    """Where to sign."""

    url: str
    version: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Who signs with an embedded trust unless told otherwise, and who vouches for it."""

    identity: str
    issuer: str


@dataclass(frozen=True, slots=True)
class TrustShown:
    """All of a trust. `services` is None where one can only verify."""

    path: str
    embedded: Identity | None
    certificate_authorities: tuple[Authority, ...]
    transparency_logs: tuple[Log, ...]
    certificate_logs: tuple[Log, ...]
    timestampers: tuple[Authority, ...]
    services: dict[str, tuple[ServiceUrl, ...]] | None

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.path}: " + _nature(self)
        if self.embedded:
            yield f"  signs as {self.embedded.identity}, for whom {self.embedded.issuer} vouches"
        for kind, authorities in (
            ("certificate authority", self.certificate_authorities),
            ("timestamp authority", self.timestampers),
        ):
            for authority in authorities:
                yield f"{kind} {authority.url}, trusted {_period(authority.trusted)}"
                for one in authority.certificates:
                    yield f"  {one.subject}, valid {_period(one.valid)}"
                    yield f"    {one.sha256}"
        for kind, logs in (
            ("transparency log", self.transparency_logs),
            ("certificate log", self.certificate_logs),
        ):
            for log in logs:
                yield f"{kind} {log.url}, trusted {_period(log.trusted)}"
                yield f"  {log.key} {log.sha256}"
        for kind, urls in (self.services or {}).items():
            for service in urls:
                yield f"signs at: {kind.replace('_', ' ')} {service.url}"


def show(trust: Trust) -> TrustShown:
    """What `trust` says. Raises nothing: load_trust read it all."""
    embedded, config = trust.embedded, trust.config
    services = (
        None
        if config is None
        else {
            "issuer": _services(config.oidc_urls),
            "certificate_authority": _services(config.ca_urls),
            "transparency_log": _services(config.rekor_tlog_urls),
            "timestamp_authority": _services(config.tsa_urls),
        }
    )
    return TrustShown(
        path=str(trust.path),
        embedded=Identity(embedded.default_identity, embedded.issuer) if embedded else None,
        certificate_authorities=tuple(map(_authority, trust.root.certificate_authorities)),
        transparency_logs=tuple(map(_log, trust.root.tlogs)),
        certificate_logs=tuple(map(_log, trust.root.ctlogs)),
        timestampers=tuple(map(_authority, trust.root.timestamp_authorities)),
        services=services,
    )


def _nature(shown: TrustShown) -> str:
    if shown.embedded:
        return "an embedded trust, whose services run on this machine when they are needed"
    return "to verify and to sign with" if shown.services else "to verify with"


def _authority(authority: CertificateAuthority) -> Authority:
    chain = (x509.load_der_x509_certificate(one.raw_bytes) for one in authority.cert_chain.certificates)
    certificates = tuple(
        Certificate(
            one.subject.rfc4514_string(),
            fingerprint(one),
            Period(_time(one.not_valid_before_utc), _time(one.not_valid_after_utc)),
        )
        for one in chain
    )
    return Authority(authority.uri or "", _range(authority.valid_for), certificates)


def _log(log: TransparencyLogInstance) -> Log:
    digest = hashlib.sha256(log.public_key.raw_bytes or b"").hexdigest()
    return Log(
        log.base_url, _range(log.public_key.valid_for), log.public_key.key_details.value, f"sha256:{digest}"
    )


def _services(services: list[Service]) -> tuple[ServiceUrl, ...]:
    return tuple(ServiceUrl(one.url, one.major_api_version) for one in services)


def _range(period: TimeRange | None) -> Period:
    return Period(_time(period.start), _time(period.end)) if period else Period(None, None)


def _time(moment: datetime | None) -> str | None:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None


def _period(period: Period) -> str:
    return (
        " ".join(
            f"{word} {moment[:10]}"
            for word, moment in (("from", period.start), ("until", period.end))
            if moment
        )
        or "always"
    )
