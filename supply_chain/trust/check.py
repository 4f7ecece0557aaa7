"""Ask each service of a trust, and say of each answer whether it fits what is trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from pipelines.doctor import Check
from supply_chain.errors import SupplyChainError, TrustError
from supply_chain.signing.services import services
from supply_chain.statement import statement_bytes
from supply_chain.trust.certificates import fingerprint
from supply_chain.trust.checkpoint import read_checkpoint
from supply_chain.trust.embedded.services import running
from supply_chain.trust.service_client import ServiceClient, service_client
from supply_chain.trust.trust import Trust

if TYPE_CHECKING:
    from sigstore_models.trustroot.v1 import CertificateAuthority, Service

# How far this machine's clock may be from the timestamper's: a certificate is for 10 minutes from when the
# authority made it, and a token for less.
_CLOCK = timedelta(seconds=30)
# What is signed to see whether it can be: nothing is said of no bytes.
_NOTHING = f"sha256:{hashlib.sha256(b'').hexdigest()}"
_CHECKED = "https://disk-image.internal/signing-checked/v1"

_RENEWED = "if the service was renewed on purpose, make a new trust; else somebody answers in its place"


async def check_trust(trust: Trust) -> list[Check]:
    """A check of what the trust says by itself, then one of each service, asked side by side.

    Nothing is signed or logged. The services of an embedded trust are started for it. Raises TrustError when
    they can't be.
    """
    async with running(trust) as started, service_client() as client:
        return [_validity(started), *await _answers(_Asking(started, client).questions())]


async def check_signing(
    trust: Trust,
    environment: Mapping[str, str],
    *,
    token_file: Path | None = None,
    identity: str | None = None,
) -> Check:
    """Sign a few bytes as `disk-image sign` would, with the token that it would take, and verify them.

    It leaves an entry in each log. Only so is it seen that certificates carry a timestamp of the certificate
    log. Raises UsageError for an `identity` that nobody here vouches for.
    """
    from supply_chain.signing.sigstore_signer import open_signer
    from supply_chain.signing.token_sources import identity_token

    try:
        async with running(trust) as started, services() as asking:
            token = await identity_token(started, asking, environment, file=token_file, identity=identity)
            signer = await open_signer(started, token, asking)
            await signer.sign(statement_bytes(_NOTHING, _CHECKED, {}))
    except SupplyChainError as error:
        return Check("signing", False, error.what, error.hint)
    return Check("signing", True, f"as {signer.identity}, vouched for by {signer.issuer}; it verifies", "")


async def _answers(questions: Sequence[tuple[str, Callable[[], Awaitable[str]]]]) -> list[Check]:
    """Ask them all at once; the answers in their order."""
    answers: dict[int, Check] = {}

    async def ask(number: int, name: str, question: Callable[[], Awaitable[str]]) -> None:
        try:
            answers[number] = Check(name, True, await question(), "")
        except SupplyChainError as error:
            answers[number] = Check(name, False, error.what, error.hint)

    async with anyio.create_task_group() as tasks:
        for number, (name, question) in enumerate(questions):
            tasks.start_soon(ask, number, name, question)
    return [answers[number] for number in range(len(questions))]


def _validity(trust: Trust) -> Check:
    """Whether signatures that are made now could be verified with these certificates."""
    now = datetime.now(UTC)
    for kind, authorities in (
        ("certificate authority", trust.root.certificate_authorities),
        ("timestamp authority", trust.root.timestamp_authorities),
    ):
        if authorities and not any(_current(authority, now) for authority in authorities):
            found = f"no {kind} is valid at this machine's time, {now:%Y-%m-%d %H:%M} UTC"
            return Check(
                "trusted root", False, found, "set the clock, or make a new trust for new signatures"
            )
    return Check("trusted root", True, "its certificates are valid now", "")


def _current(authority: CertificateAuthority, now: datetime) -> bool:
    period = authority.valid_for
    return (
        period.start <= now
        and (period.end is None or now < period.end)
        and all(one.not_valid_before_utc <= now <= one.not_valid_after_utc for one in _chain(authority))
    )


def _chain(authority: CertificateAuthority) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(one.raw_bytes) for one in authority.cert_chain.certificates]


class _Asking:
    """The questions to a trust's services. Each answers in words, or raises SupplyChainError."""

    def __init__(self, trust: Trust, client: ServiceClient) -> None:
        self._trust = trust
        self._client = client

    def questions(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        """Kind and question of each service to sign with; none for a trust that can only verify."""
        config = self._trust.config
        if config is None:
            return []
        kinds: tuple[tuple[str, Sequence[Service], Callable[[Service], Awaitable[str]]], ...] = (
            ("identity issuer", config.oidc_urls, self._issuer),
            ("certificate authority", config.ca_urls, self._authority),
            ("transparency log", config.rekor_tlog_urls, self._log),
            ("timestamp authority", config.tsa_urls, self._timestamper),
        )
        return [
            (kind, partial(question, service)) for kind, services, question in kinds for service in services
        ]

    async def _issuer(self, service: Service) -> str:
        name, expected = await self._client.issuer_name(service.url), self._issuer_name(service)
        if name != expected:
            raise TrustError(
                f"{service.url}: calls itself {name[:200]!r}, expected {expected!r}",
                "certificates carry the name that the issuer gives itself: write that in the trust",
            )
        return f"{service.url}: reachable, with keys"

    def _issuer_name(self, service: Service) -> str:
        embedded = self._trust.embedded
        return embedded.issuer if embedded else service.url

    async def _authority(self, service: Service) -> str:
        """Its roots are trusted, and it knows the issuer."""
        roots = {fingerprint(_chain(one)[-1]) for one in self._trust.root.certificate_authorities}
        answered = [fingerprint(chain[-1]) for chain in await self._client.authority_chains(service.url)]
        if strangers := [root for root in answered if root not in roots]:
            raise TrustError(
                f"{service.url}: its root is {strangers[0]}, trusted are {', '.join(sorted(roots))}",
                _RENEWED,
            )
        issuers = await self._client.issuers(service.url)
        config = self._trust.config
        wanted = [self._issuer_name(one) for one in config.oidc_urls] if config else []
        for issuer in wanted:
            if issuer not in issuers and not any("*" in one for one in issuers):
                raise TrustError(
                    f"{service.url}: does not know the issuer {issuer}, but {', '.join(issuers) or 'none'}",
                    f'add to its configuration, under oidc-issuers: "{issuer}": '
                    f'{{issuer-url: "{issuer}", client-id: sigstore, type: …}}',
                )
        return f"{service.url}: its root {answered[0]} is trusted, it knows the issuer"

    async def _log(self, service: Service) -> str:
        """Its newest checkpoint is by a trusted key, and its origin is that log's host."""
        text = await self._client.checkpoint(service.url, service.major_api_version)
        if text is None:
            return f"{service.url}: reachable, its checkpoint is served elsewhere, its key not seen"
        checkpoint = read_checkpoint(text, service.url)
        host = checkpoint.origin.split(" ")[0]
        logs = [
            (urlsplit(log.base_url).hostname, log.public_key.raw_bytes) for log in self._trust.root.tlogs
        ]
        for name, key in logs:
            with suppress(UnsupportedAlgorithm):
                if name == host and checkpoint.signed_by(host, load_der_public_key(key or b"")):
                    return f"{service.url}: trusted as {host}, with {checkpoint.tree_size} entries"
        names = sorted({name or "none" for name, _ in logs})
        if host in names:
            raise TrustError(f"{service.url}: its checkpoint is not by the trusted key of {host}", _RENEWED)
        raise TrustError(
            f"{service.url}: its checkpoints are of {host[:200]!r}, the trusted root has {', '.join(names)}",
            "start the log with its URL's host as its origin: clients take the origin from the URL",
        )

    async def _timestamper(self, service: Service) -> str:
        """It stamps with a trusted certificate, at this machine's time."""
        stamp = await self._client.stamp(service.url)
        ahead = datetime.now(UTC) - stamp.time
        if abs(ahead) > _CLOCK:
            seconds = abs(ahead).total_seconds()
            raise TrustError(
                f"{service.url}: this machine's clock is {seconds:.0f} s "
                f"{'ahead of' if ahead > timedelta(0) else 'behind'} its",
                "set this machine's clock (timedatectl set-ntp true), or the timestamp authority's",
            )
        chains = [_chain(authority) for authority in self._trust.root.timestamp_authorities]
        if not any(len(chain) > 1 and stamp.is_by(chain) for chain in chains):
            raise TrustError(
                f"{service.url}: its timestamp is by none of the {len(chains)} trusted authorities", _RENEWED
            )
        return f"{service.url}: its certificate is trusted, the clocks agree"
