"""Ask the services of a Sigstore instance what they are, each within a bound.

What comes back is not believed here: the callers compare it with the trusted root.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cryptography import x509

from supply_chain.errors import InvalidDocument, ServiceDown, TrustError
from supply_chain.oci import parse_object
from supply_chain.registry.retry import Policy
from supply_chain.registry.wire import Answer
from supply_chain.signing.services import Services, services

if TYPE_CHECKING:
    from rfc3161_client import TimeStampRequest, TimeStampResponse

# One more attempt, since a proxy may have closed the first connection; a check is not for waiting.
POLICY = Policy(attempts=2, first=0.2, patience=2.0, connect_timeout=5.0, silence=5.0)

_AUTHORITY, _LOG, _TIMESTAMPER, _ISSUER = (
    "certificate authority",
    "transparency log",
    "timestamp authority",
    "identity issuer",
)


@dataclass(frozen=True, slots=True)
class Stamp:
    """A timestamp over `message`, not yet verified."""

    message: bytes
    query: TimeStampRequest
    response: TimeStampResponse

    @property
    def time(self) -> datetime:
        """When it says to have been made."""
        return self.response.tst_info.gen_time

    def is_by(self, chain: Sequence[x509.Certificate]) -> bool:
        """Whether the authority with this chain, its own certificate first, the root last, made it."""
        from rfc3161_client import VerificationError, VerifierBuilder

        verifier = VerifierBuilder.from_request(self.query).tsa_certificate(chain[0])
        for certificate in chain[1:-1]:
            verifier = verifier.add_intermediate_certificate(certificate)
        try:
            verifier.add_root_certificate(chain[-1]).build().verify_message(self.response, self.message)
        except VerificationError:
            return False
        return True


class ServiceClient:
    """Methods raise ServiceDown when no answer comes, SigningError for a URL or redirect that is not
    followed, TrustError when the answer is not that of such a service.
    """

    def __init__(self, asking: Services) -> None:
        self._asking = asking

    async def authority_chains(self, url: str) -> list[list[x509.Certificate]]:
        """Fulcio's trust bundle: chains of certificates."""
        answer = await self._json(_AUTHORITY, f"{_base(url)}/api/v2/trustBundle")
        try:
            chains = [
                [x509.load_pem_x509_certificate(one.encode()) for one in chain["certificates"]]
                for chain in answer["chains"]
            ]
        except (KeyError, TypeError, AttributeError, ValueError):
            chains = []
        if not chains or not all(chains):
            raise _not_a(url, _AUTHORITY, "a trust bundle without certificates")
        return chains

    async def issuers(self, url: str) -> list[str]:
        """The identity issuers that a Fulcio knows; wildcards as they are written there."""
        answer = await self._json(_AUTHORITY, f"{_base(url)}/api/v2/configuration")
        try:
            return [one.get("issuerUrl") or one["wildcardIssuerUrl"] for one in answer["issuers"]]
        except (KeyError, TypeError, AttributeError):
            raise _not_a(url, _AUTHORITY, "a configuration without issuers") from None

    async def checkpoint(self, url: str, version: int) -> str | None:
        """The log's newest checkpoint, a signed note; None where a version 2 log is up but serves it
        elsewhere.
        """
        if version == 1:
            answer = await self._json(_LOG, f"{url}/api/v1/log")
            if isinstance(note := answer.get("signedTreeHead"), str):
                return note
            raise _not_a(url, _LOG, "no signedTreeHead")
        answered = await self._ask(_LOG, f"{url}/api/v2/checkpoint")
        if answered.status == 200:
            return answered.content.decode(errors="replace")
        if answered.status in (404, 501) and (await self._ask(_LOG, f"{url}/healthz")).status == 200:
            return None
        raise _status(_LOG, answered)

    async def timestamper_chain(self, url: str) -> list[x509.Certificate]:
        """The timestamper's certificates."""
        response = await self._ask(_TIMESTAMPER, f"{url.rstrip('/')}/certchain")
        if response.status != 200:
            raise _status(_TIMESTAMPER, response)
        try:
            return x509.load_pem_x509_certificates(response.content)
        except ValueError:
            raise _not_a(url, _TIMESTAMPER, "no PEM certificates") from None

    async def stamp(self, url: str) -> Stamp:
        """A timestamp over random bytes."""
        from rfc3161_client import TimestampRequestBuilder, decode_timestamp_response

        message = secrets.token_bytes(32)
        query = TimestampRequestBuilder().data(message).nonce(nonce=True).build()
        response = await self._ask(_TIMESTAMPER, url, query.as_bytes(), "application/timestamp-query")
        if response.status not in (200, 201):
            raise _status(_TIMESTAMPER, response)
        try:
            return Stamp(message, query, decode_timestamp_response(response.content))
        except ValueError:
            raise _not_a(url, _TIMESTAMPER, "no TimeStampResp") from None

    async def issuer_name(self, url: str) -> str:
        """What an identity issuer calls itself; its keys are asked for, too."""
        answer = await self._json(_ISSUER, f"{url.rstrip('/')}/.well-known/openid-configuration")
        name, keys = answer.get("issuer"), answer.get("jwks_uri")
        if not isinstance(name, str) or not isinstance(keys, str):
            raise _not_a(url, _ISSUER, "a discovery document without issuer and jwks_uri")
        if not (await self._json(_ISSUER, keys)).get("keys"):
            raise _not_a(url, _ISSUER, f"no keys at {keys}")
        return name

    async def _json(self, service: str, url: str) -> dict[str, Any]:
        answer = await self._ask(service, url)
        if answer.status != 200:
            raise _status(service, answer)
        try:
            return dict(parse_object(answer.content, "answer"))
        except InvalidDocument:
            found = answer.headers.get("content-type", "") or "bytes"
            raise _not_a(url, service, f"{found[:80]}, no JSON object") from None

    async def _ask(self, service: str, url: str, body: bytes = b"", content_type: str = "") -> Answer:
        headers = {"content-type": content_type} if content_type else {}
        try:
            return await self._asking.call(service, "POST" if body else "GET", url, headers, body)
        except ServiceDown as error:
            raise ServiceDown(error.what, _IS_IT_UP) from None


@asynccontextmanager
async def service_client(policy: Policy = POLICY) -> AsyncIterator[ServiceClient]:
    """A client for the length of the context."""
    async with services(policy) as asking:
        yield ServiceClient(asking)


_IS_IT_UP = "see that the service runs and that this machine reaches it (proxy, firewall, certificate)"
_RIGHT_URL = "see that the URL is the service's own, without the path of its API"


def _base(url: str) -> str:
    """Scheme and host: clients of Fulcio replace whatever path follows."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _not_a(url: str, service: str, found: str) -> TrustError:
    return TrustError(f"{url}: is no {service}: it answers with {found}", _RIGHT_URL)


def _status(service: str, answer: Answer) -> TrustError:
    return TrustError(f"{answer.url}: answers HTTP {answer.status}, which a {service} does not", _RIGHT_URL)
