"""Requests to a platform: bounded in time and bytes, sent again where that can heal, never redirected."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx

from platform_client.errors import NotThePlatform, Refused, Unreachable
from platform_client.settings import origin
from supply_chain.errors import InvalidDocument
from supply_chain.oci import parse_object
from supply_chain.registry.retry import TRANSIENT, Attempts, Policy
from supply_chain.registry.wire import Answer, Body, Interrupted, Wire, pieces

# Ten minutes in all: some twenty attempts. Whoever waits longer starts the command again.
POLICY = Policy(attempts=100, first=1.0, longest=60.0, patience=600.0, connect_timeout=10.0, silence=20.0)
# An answer says what became of a request; a page of publications has the most to say.
ANSWER_LIMIT = 1024 * 1024

_MESSAGE_LENGTH = 200
# What is shorter stands in every text.
_SHORTEST = 4
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")


def heals(answer: Answer) -> bool:
    """Whether asking again may bring another answer."""
    return answer.status in TRANSIENT


class Calls:
    """A platform as its clients call it. `who` names it for people; no error shows one of `secrets`."""

    def __init__(self, wire: Wire, who: str, secrets: tuple[str, ...]) -> None:
        self._wire = wire
        self.who = who
        self._secrets = sorted((one for one in secrets if len(one) >= _SHORTEST), key=len, reverse=True)

    async def send(
        self,
        method: str,
        url: httpx.URL,
        headers: Callable[[], Mapping[str, str]],
        body: Body | None = None,
        *,
        repeatable: bool = True,
        heals: Callable[[Answer], bool] = heals,
        limit: int = ANSWER_LIMIT,
    ) -> Answer:
        """Send until an answer comes that asking again does not heal; `headers` are made for each attempt.

        A request that is not `repeatable` is sent again only when it can't have been carried out. Raises
        Unreachable when the policy's patience or attempts are used up, and NotThePlatform for a redirect or
        an answer of more than `limit` bytes.
        """
        policy = self._wire.policy
        attempts = Attempts(policy)
        sent = 0
        failed = "no answer"
        status: int | None = None
        said: Mapping[str, str] = {}
        try:
            with anyio.fail_after(policy.patience):
                while True:
                    sent += 1
                    try:
                        answer = await self._once(method, url, headers(), body, limit)
                    except Interrupted as error:
                        failed, status, said = error.reason, None, {}
                        if error.final:
                            raise Unreachable(f"{self.who}: {failed}", _final_hint(error)) from None
                        again = repeatable
                    else:
                        if not heals(answer):
                            return self._checked(answer, limit)
                        failed, status, said = f"answered {answer.status}", answer.status, answer.headers
                        again = repeatable or answer.status == 429
                    if not again or not await attempts.again(said):
                        break
        except TimeoutError:
            failed = f"{failed}, and then no more within {policy.patience:.0f} s"
        raise Unreachable(
            f"{self.who}: {failed} ({_counted(sent)})",
            f"see that it is up{_asked_to_wait(said)}",
            status,
        )

    async def _once(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], body: Body | None, limit: int
    ) -> Answer:
        async with self._wire.exchange(method, url, headers, body, expected=limit) as response:
            content = bytearray()
            async for part in pieces(response):
                content += part
                if len(content) > limit:
                    break
            return Answer(url, response.status_code, response.headers, bytes(content))

    def _checked(self, answer: Answer, limit: int) -> Answer:
        if 300 <= answer.status < 400:
            raise NotThePlatform(
                f"{self.who}: answered {answer.status}, a redirect, which is never followed",
                "set the address that it answers at itself",
                answer.status,
            )
        if len(answer.content) > limit:
            raise NotThePlatform(
                f"{self.who}: expected an answer of at most {limit} bytes, found more",
                "see what answers in the platform's place",
                answer.status,
            )
        return answer

    def said(self, text: object) -> str:
        """What the platform said, fit to be shown: short, printable, without a secret."""
        clean = "".join(character for character in str(text) if character.isprintable())
        for secret in self._secrets:
            clean = clean.replace(secret, "***")
        return clean[:_MESSAGE_LENGTH]


@asynccontextmanager
async def open_calls(
    url: httpx.URL,
    secrets: tuple[str, ...],
    *,
    policy: Policy | None = None,
    ca_file: Path | None = None,
    who: str = "the platform",
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Calls]:
    """Connect to the platform at `url` (see settings.check_url) on first use; `ca_file` adds certificate
    authorities (PEM), `transport` replaces the network.
    """
    async with Wire(policy or POLICY, plain_http=True, ca_file=ca_file, transport=transport) as wire:
        yield Calls(wire, f"{who} at {origin(url)}", secrets)


def answered_object(answer: Answer, calls: Calls) -> dict[str, object]:
    """The JSON object of an answer. Raises NotThePlatform for a page, or anything else."""
    try:
        return parse_object(answer.content, f"{calls.who}: answered {answer.status}")
    except InvalidDocument as error:
        # what is quoted there is at most that it is a page, or how long it is
        raise NotThePlatform(
            error.what, "see that no proxy or login page answers in the platform's place", answer.status
        ) from None


def refusal(answer: Answer, calls: Calls, what: str, hints: Mapping[int, str]) -> Refused:
    """The error for an answer other than 2xx, with what the platform says in `error` or `reason`."""
    try:
        told = answered_object(answer, calls)
    except NotThePlatform:
        told = {}
    reason = word(told.get("reason"))
    words = next(
        (told[name] for name in ("error", "error_message", "reason", "message") if told.get(name)), ""
    )
    because = f": {calls.said(words)}" if words else ""
    hint = hints.get(answer.status, "see the platform's log")
    return Refused(
        f"{calls.who}: {what}: refused with {answer.status}{because}", hint, answer.status, reason
    )


def answered_data(answer: Answer, calls: Calls, what: str, hints: Mapping[int, str]) -> Mapping[str, Any]:
    """What a platform's API answers: `{"success": true, "data": …}`, where `success` decides, whatever the
    HTTP status. Raises Refused and NotThePlatform.
    """
    told = answered_object(answer, calls) if 200 <= answer.status < 300 else {}
    if told.get("success") is not True:
        raise refusal(answer, calls, what, hints)
    data = told.get("data")
    return data if isinstance(data, dict) else told


def word(value: object) -> str | None:
    """A status or a reason, None when it is no such word."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def _counted(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"


def _asked_to_wait(headers: Mapping[str, str]) -> str:
    wait = headers.get("retry-after", "").strip()[:40]
    return f" (it asks to wait: {wait})" if wait and wait.isprintable() else ""


def _final_hint(error: Interrupted) -> str:
    if error.reason.startswith("its certificate"):
        return "give the certificate authority that signed for it with --ca-file FILE"
    return "set the address of a server that speaks https"
