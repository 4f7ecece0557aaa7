"""`/mcp`: MCP over streamable HTTP, a request and its answer in JSON.

There are no sessions and no open streams: any server process can answer any request, a revoked token ends
with its next request, and nothing keeps the server from stopping.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi.security.utils import get_authorization_scheme_param
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from platform_server.mcp.server import Context, mcp_server, require_user
from platform_server.mcp.tools import Reading
from platform_server.permissions import Caller
from platform_server.state_folder import Platform
from platform_server.tokens import authenticate

PATH = "/mcp"
_CALLER = "platform_server.caller"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Endpoint:
    """Lets a user's requests through to the server.

    1. The token is known, and not revoked (401 with WWW-Authenticate).
    2. It is a user's (403).
    3. Host names this platform, and Origin, which browsers send, is its own: another site's pages reach
       nothing, also by a name that they point at this machine (DNS rebinding). The SDK checks it.
    4. The server checks the permission for each tool.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        url = platform.settings.public_url
        self.sessions = StreamableHTTPSessionManager(
            mcp_server(platform, _caller, Reading(("--url", url), url)),
            stateless=True,
            json_response=True,
            max_request_body_size=platform.settings.limits.body,
            security_settings=_reached_by(url),
        )
        self.route = Route(PATH, self, methods=["POST"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scheme, token = get_authorization_scheme_param(Headers(scope=scope).get("authorization"))
        if scheme.lower() != "bearer":
            token = ""
        caller = await self._platform.database.read(lambda on: authenticate(on, token))  # 1
        scope[_CALLER] = require_user(caller)  # 2
        await self.sessions.handle_request(scope, receive, send)  # 3, 4


async def _caller(context: Context) -> Caller:
    """Whom the endpoint let through with this request: one HTTP request is one of MCP's."""
    assert context.request is not None
    found: Caller = context.request.scope[_CALLER]
    return found


def _reached_by(url: str) -> TransportSecuritySettings:
    """The public URL's host, and this machine itself."""
    parts = urlsplit(url)
    default = ":443" if parts.scheme == "https" else ":80"
    named = {parts.netloc, parts.netloc.removesuffix(default)}
    return TransportSecuritySettings(
        allowed_hosts=[*sorted(named), *_LOOPBACK, *(f"{name}:*" for name in _LOOPBACK)],
        allowed_origins=sorted(f"{parts.scheme}://{name}" for name in named),
    )
