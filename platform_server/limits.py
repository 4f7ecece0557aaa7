"""Bounds on a request's body, in bytes and in time, before anything reads it."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from platform_server.errors import Refused, TooLarge, TooSlow
from platform_server.settings import Limits

Answer = Callable[[Refused, Receive, Scope, Send], object]


class BodyLimits:
    """Reads at most what `Limits` allows, and no longer; an upload's bound is its route's own."""

    def __init__(self, app: ASGIApp, limits: Limits, *, streamed: Callable[[str], bool]) -> None:
        self._app = app
        self._limits = limits
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._streamed(scope["path"]):
            await self._app(scope, receive, send)
            return
        until = time.monotonic() + self._limits.body_seconds
        taken = 0
        done = False

        async def bounded() -> Message:
            nonlocal taken, done
            if done:
                # What comes now is the end of the connection.
                return await receive()
            try:
                with anyio.fail_after(max(0.0, until - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise TooSlow(
                    f"body: expected all of it within {self._limits.body_seconds:g} s, found {taken} bytes",
                    "send it again over a faster line",
                ) from None
            taken += len(message.get("body", b""))
            done = not message.get("more_body", False)
            if taken > self._limits.body:
                raise TooLarge(f"body: expected at most {self._limits.body} bytes, found more", "send less")
            return message

        await self._app(scope, bounded, send)
