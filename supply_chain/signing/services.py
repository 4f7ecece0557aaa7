"""Asking a service that signing needs: bounded in time and bytes, and again where that can heal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

import httpx

from supply_chain.errors import BrokenAnswer, InvalidDocument, ServiceDown, SigningError
from supply_chain.oci import parse_object
from supply_chain.reference import is_loopback
from supply_chain.registry.retry import TRANSIENT, Attempts, Policy
from supply_chain.registry.wire import Answer, Body, Interrupted, Wire, read_all, shown

# A log answers when its next checkpoint is written, which takes Rekor up to 20 s.
POLICY = Policy(attempts=5, longest=8.0, patience=60.0, connect_timeout=10.0, silence=45.0)
# Log entries and certificate chains have some kilobytes. An exchange's time is reckoned from `_TYPICAL`.
_TYPICAL = 64 * 1024
_LIMIT = 1024 * 1024
_MESSAGE_LENGTH = 300


class Services:
    """The services of one signing. `asking` is the one that an answer was last awaited from."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.asking = ""

    async def call(
        self, service: str, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Answer:
        """The answer of `service`, a name for people, at `url`: a success or a refusal that stays one.

        Raises ServiceDown when there was none within the policy's bounds, and SigningError for a URL, a
        redirect or a certificate that asking again does not heal.
        """
        where = named(service, url)
        target = _target(where, url)
        self.asking = where
        attempts = Attempts(self._wire.policy)
        while True:
            try:
                answer = await self._once(where, method, target, headers, body)
            except Interrupted as error:
                failed, reason = None, error.reason
            else:
                if answer.status not in TRANSIENT:
                    return answer
                failed, reason = answer.headers, f"HTTP {answer.status}{_wish(answer)}"
            if not await attempts.again(failed):
                raise ServiceDown(
                    f"{where}: {reason} (attempt {attempts.failed}, the last one)",
                    "the image stays as it was built: run the same command again when the service is up",
                )

    async def _once(
        self, where: str, method: str, url: httpx.URL, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """One attempt. Raises Interrupted for what asking again may heal."""
        sent = Body.of(body) if body else None
        try:
            async with self._wire.exchange(method, url, headers, sent, expected=_TYPICAL) as response:
                content = await read_all(response, _LIMIT, where)
        except Interrupted as error:
            if not error.final:
                raise
            raise SigningError(
                f"{where}: {error.reason}",
                "check its URL; an authority of your own is trusted by SSL_CERT_FILE=FILE",
            ) from None
        except BrokenAnswer as error:
            raise SigningError(error.what, "see what answers at this URL in its place") from None
        if 300 <= response.status_code < 400:
            # Elsewhere might be anyone, and the request may carry a token.
            raise SigningError(
                f"{where}: HTTP {response.status_code}, a redirect, which is not followed",
                "name the URL that it leads to",
            )
        return Answer(url, response.status_code, response.headers, content)


@asynccontextmanager
async def services(policy: Policy = POLICY) -> AsyncIterator[Services]:
    """Connections for one signing."""
    # Only to this machine itself: `_target` refuses plain http to any other.
    async with Wire(policy, plain_http=True) as wire:
        yield Services(wire)


def explanation(answer: Answer, secrets: Collection[str] = ()) -> str:
    """What a service says about its refusal, in a few printable words, and without the `secrets` that it was
    sent.
    """
    try:
        message = str(parse_object(answer.content, "answer").get("message", ""))
    except InvalidDocument as error:
        message = error.what.partition("found ")[2]
    for secret in sorted(secrets, key=len, reverse=True):
        message = message.replace(secret, "…")
    clean = "".join(character if character.isprintable() else " " for character in message)
    return clean[:_MESSAGE_LENGTH] or "no reason given"


def named(service: str, url: str) -> str:
    """The service and where it is, without what may be secret in its URL."""
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL:
        return service
    # A text without a host may be anything, pasted into the wrong setting.
    return f"{service} {shown(target)}" if target.host else service


def _target(where: str, url: str) -> httpx.URL:
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL:
        raise SigningError(f"{where}: its URL is none", "set a URL as in https://host/path") from None
    host = f"[{target.host}]" if ":" in target.host else target.host
    if target.userinfo or not target.host:
        raise SigningError(
            f"{where}: its URL has no host, or a password in it", "set a URL as in https://host/path"
        )
    if target.scheme != "https" and not (target.scheme == "http" and is_loopback(host)):
        raise SigningError(
            f"{where}: expected https, found {target.scheme or 'no scheme'}",
            "reach it by https: tokens travel by plain http on this machine only",
        )
    return target


def _wish(answer: Answer) -> str:
    wait = answer.headers.get("retry-after", "").strip()[:40]
    return f", it asks to wait {wait}" if wait and wait.isprintable() else ""
