"""Each request: its id, its line in the log, and its share of the metrics.

A sender's own id is kept when it is one (X-Request-Id, else the trace of a W3C traceparent), so that its
operator finds it in this log; every answer names the id that counts.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from platform_server.identifiers import new_id
from platform_server.metrics import REQUEST_SECONDS, REQUESTS

log = logging.getLogger(__name__)

HEADER = b"x-request-id"
_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{7,63}")
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
# Asked every few seconds by machines.
_QUIET = frozenset(("/healthz", "/readyz", "/metrics"))


class Requests:
    """Goes around everything else that answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        clear_contextvars()
        request_id = request_id_of(scope["headers"])
        bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        # what a connection that was lost before its answer is told
        status = 499

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [*message.get("headers", ()), (HEADER, request_id.encode())],
                }
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - started
            method, route = scope["method"], route_of(scope)
            if method not in _METHODS:
                method = "other"
            REQUESTS.labels(method, route, str(status)).inc()
            REQUEST_SECONDS.labels(method, route).observe(seconds)
            client = scope.get("client")
            log.log(
                logging.DEBUG if route in _QUIET else logging.INFO,
                "request",
                extra={
                    "method": method,
                    "route": route,
                    "status": status,
                    "seconds": round(seconds, 6),
                    "address": client[0] if client else "",
                },
            )


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id that came with a request, if it is one and came once; else a new one."""
    came: dict[bytes, list[bytes]] = {HEADER: [], b"traceparent": []}
    for name, value in headers:
        if name in came:
            came[name].append(value)
    if len(own := came[HEADER]) == 1 and _ID.fullmatch(own[0]):
        return own[0].decode()
    if len(traces := came[b"traceparent"]) == 1 and (found := _TRACE.fullmatch(traces[0])):
        return found[1].decode()
    return str(new_id())


def route_of(scope: Scope) -> str:
    """The path's template: without what the sender put into it."""
    route = scope.get("route")
    if not isinstance(route, APIRoute):
        if "endpoint" not in scope:
            return "unmatched"
        # An application below this one, or a route without parameters.
        return str(scope["root_path"] if scope.get("path_params") else scope["path"])
    template = route.path
    # A route may know its path below the prefix alone: what stands before it matched that prefix.
    before = scope["path"].split("/")[: scope["path"].count("/") - template.count("/") + 1]
    return "/".join(before) + template
