"""Ask the services of a Sigstore instance over HTTP, each with a bound on time and size.

What comes back is not believed here: the callers compare it with the trusted root.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
from cryptography import x509

from supply_chain.errors import ServiceDown, SupplyChainError, TrustError

# Seconds for one answer, from connecting to its last byte, and bytes of it.
PATIENCE = 10.0
_LIMIT = 1 << 20


class ServiceClient:
    """An HTTP client for services. It follows no redirect: a service is where the trust says.

    Methods raise ServiceDown when no answer comes, TrustError when it is not that of such a service.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def authority_chains(self, url: str) -> list[list[x509.Certificate]]:
        """Fulcio's trust bundle: chains of certificates."""
        answer = await self._json("certificate authority", "GET", f"{_base(url)}/api/v2/trustBundle")
        try:
            return [
                [x509.load_pem_x509_certificate(one.encode()) for one in chain["certificates"]]
                for chain in answer["chains"]
            ]
        except (KeyError, TypeError, AttributeError, ValueError):
            raise _not_a(url, "certificate authority", "a trust bundle without certificates") from None

    async def issuers(self, url: str) -> list[str]:
        """The identity issuers that a Fulcio knows; wildcards as they are written there."""
        answer = await self._json("certificate authority", "GET", f"{_base(url)}/api/v2/configuration")
        try:
            return [one.get("issuerUrl") or one["wildcardIssuerUrl"] for one in answer["issuers"]]
        except (KeyError, TypeError, AttributeError):
            raise _not_a(url, "certificate authority", "a configuration without issuers") from None

    async def checkpoint(self, url: str, version: int) -> str | None:
        """The log's newest checkpoint, a signed note; None where a version 2 log is up but serves it
        elsewhere.
        """
        if version == 1:
            answer = await self._json("transparency log", "GET", f"{url}/api/v1/log")
            if isinstance(note := answer.get("signedTreeHead"), str):
                return note
            raise _not_a(url, "transparency log", "no signedTreeHead")
        response = await self._ask("GET", f"{url}/api/v2/checkpoint")
        if response.status_code == 200:
            return response.content.decode(errors="replace")
        health = await self._ask("GET", f"{url}/healthz")
        if response.status_code in (404, 501) and health.status_code == 200:
            return None
        raise _status("transparency log", response)

    async def timestamper_chain(self, url: str) -> list[x509.Certificate]:
        """The timestamper's certificates."""
        response = await self._ask("GET", f"{url.rstrip('/')}/certchain")
        if response.status_code != 200:
            raise _status("timestamper", response)
        try:
            return x509.load_pem_x509_certificates(response.content)
        except ValueError:
            raise _not_a(url, "timestamper", "no PEM certificates") from None

    async def stamp(self, url: str, chain: Sequence[x509.Certificate]) -> datetime:
        """The time in a timestamp over random bytes, whose token the `chain`, leaf first, vouches for."""
        from rfc3161_client import (
            TimestampRequestBuilder,
            VerificationError,
            VerifierBuilder,
            decode_timestamp_response,
        )

        message = secrets.token_bytes(32)
        query = TimestampRequestBuilder().data(message).nonce(nonce=True).build()
        headers = {"content-type": "application/timestamp-query"}
        response = await self._ask("POST", url, content=query.as_bytes(), headers=headers)
        if response.status_code not in (200, 201):
            raise _status("timestamper", response)
        verifier = VerifierBuilder.from_request(query).tsa_certificate(chain[0])
        for certificate in chain[1:-1]:
            verifier = verifier.add_intermediate_certificate(certificate)
        try:
            stamped = decode_timestamp_response(response.content)
            verifier.add_root_certificate(chain[-1]).build().verify_message(stamped, message)
        except VerificationError as error:
            raise TrustError(
                f"{url}: its timestamp is not by the trusted timestamper: {error}",
                "make a new trust for the timestamper that is there now, or name the right URL",
            ) from None
        except ValueError:
            raise _not_a(url, "timestamper", "no TimeStampResp") from None
        return stamped.tst_info.gen_time

    async def issuer_name(self, url: str) -> str:
        """What an identity issuer calls itself; its keys are asked for, too."""
        answer = await self._json("issuer", "GET", f"{url.rstrip('/')}/.well-known/openid-configuration")
        name, keys = answer.get("issuer"), answer.get("jwks_uri")
        if not isinstance(name, str) or not isinstance(keys, str):
            raise _not_a(url, "issuer", "a discovery document without issuer and jwks_uri")
        if not (await self._json("issuer", "GET", keys)).get("keys"):
            raise _not_a(url, "issuer", f"no keys at {keys}")
        return name

    async def _json(self, kind: str, method: str, url: str) -> dict[str, Any]:
        response = await self._ask(method, url)
        if response.status_code != 200:
            raise _status(kind, response)
        try:
            loaded = response.json()
        except ValueError:
            raise _not_a(
                url, kind, f"{response.headers.get('content-type', 'something')}, not JSON"
            ) from None
        if not isinstance(loaded, dict):
            raise _not_a(url, kind, "JSON that is no object")
        return loaded

    async def _ask(
        self, method: str, url: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """The whole answer, whatever its status."""
        try:
            with anyio.fail_after(PATIENCE):
                async with self._client.stream(method, url, content=content, headers=headers) as response:
                    body = bytearray()
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > _LIMIT:
                            raise TrustError(f"{url}: answers with more than {_LIMIT} bytes", _RIGHT_URL)
        except TimeoutError:
            raise ServiceDown(f"{url}: no answer within {PATIENCE:.0f} s", _IS_IT_UP) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceDown(f"{url}: {str(error) or type(error).__name__}", _IS_IT_UP) from None
        kept = {"content-type": response.headers.get("content-type", "")}
        return httpx.Response(
            response.status_code, headers=kept, content=bytes(body), request=response.request
        )


@asynccontextmanager
async def service_client() -> AsyncIterator[ServiceClient]:
    """A client for the length of the context."""
    async with httpx.AsyncClient(timeout=PATIENCE, follow_redirects=False) as client:
        yield ServiceClient(client)


_IS_IT_UP = "see that the service runs and that this machine reaches it (proxy, firewall, certificate)"
_RIGHT_URL = "see that the URL is the service's own, without the path of its API"


def _base(url: str) -> str:
    """Scheme and host: clients of Fulcio replace whatever path follows."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _not_a(url: str, kind: str, found: str) -> TrustError:
    return TrustError(f"{url}: is no {kind}: it answers with {found}", _RIGHT_URL)


def _status(kind: str, response: httpx.Response) -> SupplyChainError:
    url, status = str(response.request.url), response.status_code
    if status >= 500 or status == 429:
        return ServiceDown(f"{url}: the {kind} answers {status}", _IS_IT_UP)
    return TrustError(f"{url}: answers {status}, which a {kind} does not", _RIGHT_URL)
