"""A request's target in absolute form, `GET http://HOST/path`: what proxies are sent, and what every server
must take (RFC 9112, 3.2.2). It is the platform's own path; its host stands for the Host header (RFC 9112,
3.3), and is asked for nothing.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

# Without a user's name before the host, which is an error (RFC 9110, 4.2.4).
_ABSOLUTE = re.compile(rb"https?://([A-Za-z0-9._~%:\[\]-]+)(/.*)?", re.IGNORECASE | re.DOTALL)


class OriginForm:
    """Lets everything inside see a path, whichever form it came in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw: bytes = scope.get("raw_path") or b"/"
        if not raw.startswith(b"/") and (found := _ABSOLUTE.fullmatch(raw)):
            path = found[2] or b"/"
            others = [each for each in scope["headers"] if each[0] != b"host"]
            scope = {
                **scope,
                "raw_path": path,
                "path": unquote(path.decode("ascii")),
                "headers": [(b"host", found[1]), *others],
            }
        await self._app(scope, receive, send)
