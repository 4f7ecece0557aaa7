"""Bounds on a request's body, in bytes and in time, before anything reads it.

What goes too far is an HTTPException: FastAPI takes any other one for a body that can't be parsed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from platform_server.metrics import LIMITED
from platform_server.settings import Limits

# As nginx counts them; requests.py says it of every connection that was lost before its answer.
_GONE = 499


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
                LIMITED.labels("body_seconds").inc()
                raise HTTPException(
                    408, f"expected the body within {self._limits.body_seconds:g} s, found {taken} bytes"
                ) from None
            if message["type"] == "http.disconnect":
                # nobody reads it, and it is nobody's fault here
                raise HTTPException(_GONE, "the client went away before the end of its body")
            taken += len(message.get("body", b""))
            done = not message.get("more_body", False)
            if taken > self._limits.body:
                LIMITED.labels("body").inc()
                raise HTTPException(413, f"expected a body of at most {self._limits.body} bytes, found more")
            return message

        await self._app(scope, bounded, send)
