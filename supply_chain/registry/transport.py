"""Requests to one repository: authorization, redirects, retries, and errors that say what happened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

import httpx

from supply_chain.errors import BrokenAnswer, InvalidDocument, NotFound, RegistryError, Rejected, Unavailable
from supply_chain.oci import DOCUMENT_LIMIT, parse_object
from supply_chain.registry.auth import Authenticator
from supply_chain.registry.retry import TRANSIENT, Attempts, Policy
from supply_chain.registry.wire import Answer, Body, Interrupted, Wire, pieces, read_all, shown

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
# An error's explanation; more of it helps nobody.
_ERROR_LIMIT = 64 * 1024
_MESSAGE_LENGTH = 200
# What documents have at most but for rare ones; the time for an exchange is reckoned from it.
_TYPICAL = 256 * 1024


class Transport:
    """Speaks to `https://registry/v2/` for one repository. All its errors are SupplyChainErrors."""

    def __init__(
        self, registry: str, repository: str, wire: Wire, auth: Authenticator, *, scheme: str
    ) -> None:
        self.registry = registry
        self.repository = repository
        self._wire = wire
        self._auth = auth
        self._origin = httpx.URL(f"{scheme}://{registry}")
        self.base = f"{scheme}://{registry}/v2/{repository}"

    @property
    def policy(self) -> Policy:
        """The bounds in force."""
        return self._wire.policy

    def scopes(self, *actions: str) -> tuple[str, ...]:
        """The token scope for `actions` (pull, push) on this repository."""
        return (f"repository:{self.repository}:{','.join(actions)}",)

    def url(self, path: str, **query: str) -> httpx.URL:
        """A URL below this repository, `path` without a leading slash."""
        url = httpx.URL(f"{self.base}/{path}")
        return url.copy_merge_params(query) if query else url

    def follow(self, answer: Answer, what: str) -> httpx.URL:
        """The answer's Location, relative or absolute, query kept. Raises BrokenAnswer when it has none."""
        try:
            return self._wire.check(answer.url.join(answer.headers["location"]))
        except (KeyError, httpx.InvalidURL):
            raise BrokenAnswer(
                f"{what}: {answer.status} without a usable Location",
                "this is no OCI registry",
                answer.status,
            ) from None

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: httpx.URL,
        *,
        scopes: Collection[str],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        expected: int = 0,
    ) -> AsyncIterator[httpx.Response]:
        """One attempt: the response of whatever status, redirects followed, one challenge answered.

        Raises Interrupted, AccessDenied and BrokenAnswer, also for reads inside the block.
        """
        refused: str | None = None
        answered = False
        redirects = 0
        while True:
            sent = dict(headers or {})
            own = self._is_own(url)
            if own and (authorization := await self._auth.header(scopes)) is not None:
                sent["authorization"] = refused = authorization
            async with self._wire.exchange(method, url, sent, body, expected=expected) as response:
                if response.status_code == 401 and own and not answered:
                    challenges = response.headers.get_list("www-authenticate")
                elif response.status_code in _REDIRECTS and method in ("GET", "HEAD"):
                    challenges = None
                else:
                    yield response
                    return
            if challenges is not None:
                await self._auth.answer(challenges, scopes, refused)
                answered = True
                continue
            redirects += 1
            if redirects > _MOST_REDIRECTS:
                raise BrokenAnswer(
                    f"{shown(url)}: more than {_MOST_REDIRECTS} redirects", "check the registry", None
                )
            url = self.follow(Answer(url, response.status_code, response.headers, b""), shown(url))

    async def once(
        self,
        method: str,
        url: httpx.URL,
        what: str,
        *,
        scopes: Collection[str],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        limit: int = DOCUMENT_LIMIT,
    ) -> Answer:
        """One attempt and its whole body; a transient status is an Answer like every other."""
        expected = 0 if method == "HEAD" else min(limit, _TYPICAL)
        async with self.open(
            method, url, scopes=scopes, headers=headers, body=body, expected=expected
        ) as response:
            if response.is_success:
                content = await read_all(response, limit, what)
            else:
                content = await self.explanation(response)
            return Answer(response.request.url, response.status_code, response.headers, content)

    async def call(
        self,
        method: str,
        url: httpx.URL,
        what: str,
        *,
        ok: Collection[int],
        scopes: Collection[str],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        limit: int = DOCUMENT_LIMIT,
    ) -> Answer:
        """Send until there is an answer whose status is in `ok`; every other one is an error."""
        attempts = Attempts(self.policy)
        while True:
            try:
                answer = await self.once(
                    method, url, what, scopes=scopes, headers=headers, body=body, limit=limit
                )
            except Interrupted as error:
                await self.wait(attempts, what, error)
                continue
            if answer.status in ok:
                return answer
            await self.wait(attempts, what, answer)

    async def wait(self, attempts: Attempts, what: str, failed: Interrupted | Answer) -> None:
        """Wait for the next attempt after what can heal; raise the error for everything else."""
        if isinstance(failed, Interrupted):
            if failed.final:
                raise Unavailable(f"{what}: {self.registry}: {failed.reason}", failed.hint) from failed
            if not await attempts.again():
                raise Unavailable(
                    f"{what}: {self.registry}: {failed.reason} (attempt {attempts.failed}, the last one)",
                    f"see that {self.registry} is up, then run the same command again: what arrived stays",
                ) from failed
            return
        if failed.status not in TRANSIENT or not await attempts.again(failed.headers):
            raise self.error(failed, what, attempts.failed)

    def error(self, answer: Answer, what: str, attempts: int = 0) -> RegistryError:
        """What a refusal means, in the registry's own words but without anything secret."""
        codes, message = _explained(answer.content)
        told = (
            self._auth.redact(f" ({': '.join(filter(None, (', '.join(codes), message)))})") if codes else ""
        )
        said = f"{what}: {self.registry} answered {answer.status}{told}"
        if answer.status in (401, 403) and self._is_own(answer.url):
            return self._auth.denied(f"{what}: {answer.status}{told}", answer.status, codes)
        if answer.status == 404:
            return NotFound(said, f"check host, path and tag: {self.registry}/{self.repository}", 404, codes)
        if answer.status in TRANSIENT:
            wait = answer.headers.get("retry-after", "").strip()[:40]
            later = f" (it asks to wait: {wait})" if wait.isprintable() and wait else ""
            what = f"{said}, {attempts} attempts"
            hint = f"run the same command again later{later}: what arrived stays"
            return Unavailable(what, hint, answer.status, codes)
        if answer.status == 413:
            return Rejected(
                said, "raise the largest request that the registry or the proxy before it takes", 413, codes
            )
        if 400 <= answer.status < 500:
            return Rejected(said, "the registry's log has the reason", answer.status, codes)
        return BrokenAnswer(said, "check that the reference names an OCI registry", answer.status, codes)

    async def explanation(self, response: httpx.Response) -> bytes:
        """The start of an error's body; a cut inside it changes nothing about the error."""
        parts = bytearray()
        try:
            async for part in pieces(response):
                parts += part
                if len(parts) >= _ERROR_LIMIT:
                    break
        except httpx.TransportError:
            pass
        return bytes(parts[:_ERROR_LIMIT])

    def _is_own(self, url: httpx.URL) -> bool:
        return (url.scheme, url.host, url.port) == (
            self._origin.scheme,
            self._origin.host,
            self._origin.port,
        )


def _explained(content: bytes) -> tuple[tuple[str, ...], str]:
    """Codes and first message of the specification's error document; nothing when it is none."""
    try:
        errors = parse_object(content, "error").get("errors")
    except InvalidDocument:
        return (), ""
    listed = [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
    codes = tuple(str(error.get("code", ""))[:60] for error in listed[:5])
    message = str(listed[0].get("message", "")) if listed else ""
    clean = "".join(character for character in message if character.isprintable())[:_MESSAGE_LENGTH]
    return tuple(code for code in codes if code.replace("_", "").isalnum()), clean
