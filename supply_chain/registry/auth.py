"""Answering a registry's challenge: Basic (RFC 7617), and Bearer tokens as the distribution project has
them.

A challenge counts only when the registry itself sent it, so that whoever is redirected to gets nothing. A
token server must be reached by TLS, or be on this machine as the registry is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import anyio
import httpx

from supply_chain.errors import AccessDenied, BrokenAnswer, InvalidDocument, Unavailable
from supply_chain.oci import parse_object
from supply_chain.registry.challenge import Challenge, parse_challenges
from supply_chain.registry.credentials import Credential, Credentials
from supply_chain.registry.retry import TRANSIENT, Attempts
from supply_chain.registry.wire import Answer, Body, Interrupted, Wire, read_all, shown

# Seconds: what a token lives when its server does not say (the token specification), and how long
# before its end it is no longer used.
_DEFAULT_LIFE = 60.0
_MARGIN = 10.0
_TOKEN_LIMIT = 1024 * 1024
_CLIENT = "disk-image"
_SHORTEST_SECRET = 4


@dataclass(frozen=True, slots=True)
class _Header:
    value: str
    expires: float

    def __repr__(self) -> str:
        return "_Header(***)"


class Authenticator:
    """The Authorization headers for one repository's registry, by the scopes they are good for."""

    def __init__(
        self,
        registry: str,
        repository: str,
        credentials: Credentials,
        wire: Wire,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._repository = repository
        self._credentials = credentials
        self._wire = wire
        self._clock = clock
        self._lock = anyio.Lock()
        self._headers: dict[frozenset[str], _Header] = {}
        self._challenges: dict[frozenset[str], tuple[str, ...]] = {}
        self._secrets: set[str] = set()
        self._credential: Credential | None = None
        self._looked = False

    async def header(self, scopes: Collection[str]) -> str | None:
        """What the last challenge for these scopes brought, renewed after its end; None before the first
        one.
        """
        wanted = frozenset(scopes)
        if (known := self._known(wanted)) is None and wanted in self._challenges:
            # a large body sent with nothing, only to be refused, would be sent twice
            return await self.answer(self._challenges[wanted], scopes, None)
        return known

    async def answer(self, challenges: Sequence[str], scopes: Collection[str], refused: str | None) -> str:
        """The header that answers a 401 to a request sent with `refused`. Raises AccessDenied when there is
        none.
        """
        async with self._lock:
            wanted = frozenset(scopes)
            known = self._known(wanted)
            if known is not None and known != refused:
                return known
            parsed = parse_challenges(challenges)
            credential = await self._find()
            header = await self._choose(parsed, credential, scopes)
            if header.value == refused:
                raise self.denied("the credential was refused", 401)
            self._headers[wanted] = header
            self._challenges[wanted] = tuple(challenges)
            return header.value

    def redact(self, text: str) -> str:
        """`text`, which came from a server, without any secret this object has shown to one."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def denied(self, reason: str, status: int, codes: tuple[str, ...] = ()) -> AccessDenied:
        """The error for 401 and 403, saying what to do with or without a credential."""
        what = f"{self._registry}/{self._repository}: access denied: {reason}"
        if self._credential is None:
            hint = f"docker login {self._registry} (no credential for it was found)"
        else:
            hint = (
                f"check that this account may use {self._repository}, or docker login {self._registry} anew"
            )
        return AccessDenied(what, hint, status, codes)

    def _known(self, wanted: frozenset[str]) -> str | None:
        found = self._headers.get(wanted)
        return found.value if found is not None and found.expires > self._clock() else None

    async def _find(self) -> Credential | None:
        if not self._looked:
            self._credential = await self._credentials.find(self._registry, self._repository)
            self._looked = True
            if self._credential is not None:
                found = self._credential
                self._hide(found.password, found.identity_token, found.registry_token)
                self._hide(found.basic().removeprefix("Basic "))
        return self._credential

    async def _choose(
        self, challenges: Sequence[Challenge], credential: Credential | None, scopes: Collection[str]
    ) -> _Header:
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if bearer := by_scheme.get("bearer"):
            if credential is not None and credential.registry_token:
                return _Header(f"Bearer {credential.registry_token}", float("inf"))
            return await self._token(bearer, credential, scopes)
        if "basic" in by_scheme:
            if credential is None or not credential.password:
                raise self.denied("it wants a user and a password", 401)
            return _Header(credential.basic(), float("inf"))
        named = ", ".join(sorted(by_scheme)) or "none"
        raise BrokenAnswer(
            f"{self._registry}: 401 with a challenge other than Basic and Bearer ({named[:80]})",
            "check that the reference names an OCI registry",
            401,
        )

    async def _token(
        self, challenge: Challenge, credential: Credential | None, scopes: Collection[str]
    ) -> _Header:
        """Ask the token server; the answer's token is good for `scopes`."""
        try:
            realm = self._wire.check(httpx.URL(challenge.parameters["realm"]))
        except (KeyError, httpx.InvalidURL):
            raise BrokenAnswer(
                f"{self._registry}: a Bearer challenge without a usable realm",
                "check the registry's auth setting",
                401,
            ) from None
        wanted = sorted({*scopes, *challenge.parameters.get("scope", "").split()})
        query = [("service", challenge.parameters["service"])] if "service" in challenge.parameters else []
        asked = self._clock()
        if credential is not None and credential.identity_token:
            form = [
                ("grant_type", "refresh_token"),
                ("client_id", _CLIENT),
                ("refresh_token", credential.identity_token),
                ("scope", " ".join(wanted)),
                *query,
            ]
            headers = {"content-type": "application/x-www-form-urlencoded"}
            answer = await self._ask("POST", realm, headers, Body.of(urlencode(form).encode()))
        else:
            headers = {"authorization": credential.basic()} if credential is not None else {}
            for name, value in (*query, *(("scope", scope) for scope in wanted)):
                realm = realm.copy_add_param(name, value)
            answer = await self._ask("GET", realm, headers, None)
        return self._read(answer, asked)

    async def _ask(self, method: str, url: httpx.URL, headers: dict[str, str], body: Body | None) -> Answer:
        what = f"the token server {shown(url)}"
        attempts = Attempts(self._wire.policy)
        while True:
            retry: httpx.Headers | None = None
            try:
                async with self._wire.exchange(
                    method, url, headers, body, expected=_TOKEN_LIMIT
                ) as response:
                    content = await read_all(response, _TOKEN_LIMIT, what)
                    answer = Answer(url, response.status_code, response.headers, content)
                if answer.status not in TRANSIENT:
                    return answer
                reason, retry = f"it answered {answer.status}", answer.headers
            except Interrupted as error:
                if error.final:
                    raise Unavailable(f"{what}: {error.reason}", error.hint) from error
                reason = error.reason
            if not await attempts.again(retry):
                raise Unavailable(f"{what}: {reason}, {attempts.failed} attempts", "try again later")

    def _read(self, answer: Answer, asked: float) -> _Header:
        where = f"the token server {shown(answer.url)}"
        if answer.status in (400, 401, 403):
            raise self.denied(f"{where} answered {answer.status}", answer.status)
        if answer.status != 200:
            raise BrokenAnswer(
                f"{where} answered {answer.status}", "check the registry's auth setting", answer.status
            )
        try:
            told: dict[str, Any] = parse_object(answer.content, f"{where}: its answer")
        except InvalidDocument as error:
            raise BrokenAnswer(error.what, error.hint, answer.status) from None
        token = told.get("token") or told.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
            raise BrokenAnswer(
                f"{where}: its answer has no token", "check the registry's auth setting", answer.status
            )
        self._hide(token)
        life = told.get("expires_in")
        seconds = float(life) if isinstance(life, int | float) and life > 0 else _DEFAULT_LIFE
        # A very short-lived token is used at least once; a 401 fetches the next.
        return _Header(f"Bearer {token}", asked + max(seconds - _MARGIN, seconds / 2))

    def _hide(self, *secrets: str) -> None:
        self._secrets.update(secret for secret in secrets if len(secret) >= _SHORTEST_SECRET)
