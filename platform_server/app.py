"""The platform over HTTP: a FastAPI application, and what runs beside it as long as it serves."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from platform_server import upload_files
from platform_server.api import PREFIX, documented
from platform_server.beside import Beside
from platform_server.errors import Refused, TooOften, Unavailable, broken_rule, shown
from platform_server.gauges import registry_of
from platform_server.health import Health
from platform_server.limits import BodyLimits
from platform_server.mcp.http import Endpoint
from platform_server.requests import Requests, route_of
from platform_server.routes import (
    actions,
    autonomy,
    built,
    ci_workers,
    disk_image,
    events,
    life,
    node_platforms,
    publications,
    secrets,
    webhooks,
    worker_api,
)
from platform_server.routes import health as health_routes
from platform_server.state_folder import Platform
from platform_server.targets import OriginForm
from platform_server.verifier import verifier_of

log = logging.getLogger(__name__)


def create_app(platform: Platform) -> FastAPI:
    """The application. Its lifespan runs the verification workers and the sweeps, and ends them.

    Raises TrustError when the trust can't be used.
    """

    beside = Beside(platform, verifier_of(platform.settings.trust))
    watched = Health(platform, beside)
    registry = registry_of(platform, watched)
    mcp = Endpoint(platform)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with beside.running():
            async with mcp.sessions.run():
                yield

    app = FastAPI(
        title="Disk image platform",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # `_answer_schema` does
        openapi_url=None,
        # a redirect goes to the host that the request names, whoever that is
        redirect_slashes=False,
    )
    app.state.platform = platform
    app.state.process = Process(beside, watched, registry)
    app.add_middleware(LastResort)
    app.add_middleware(
        BodyLimits,
        limits=platform.settings.limits,
        streamed=lambda path: path.startswith(f"{upload_files.PATH}/"),
    )
    app.add_middleware(Requests)
    app.add_middleware(OriginForm)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)

    built.add_route(app.router, platform, PREFIX)
    plain = (node_platforms, publications, webhooks, events, ci_workers, life, autonomy, actions, secrets)
    for routes in plain:
        app.include_router(documented(routes.router), prefix=PREFIX)
    files = upload_files.UploadFiles(platform)
    app.include_router(documented(worker_api.token_routes(platform, files)), prefix=PREFIX)
    app.include_router(documented(disk_image.token_routes(files)), prefix=PREFIX)
    for route in (worker_api.put_route(files), disk_image.get_route(files)):
        app.include_router(route, prefix=PREFIX)

    app.include_router(health_routes.router(watched, registry))
    app.router.routes.append(mcp.route)
    _answer_schema(app)
    return app


def _answer_schema(app: FastAPI) -> None:
    """Answer the schema, which anybody may ask for, with bytes that are made once: making them takes longer
    than a delivery.
    """

    @cache
    def made() -> bytes:
        return bytes(JSONResponse(app.openapi()).body)

    async def schema(request: Request) -> Response:
        return Response(await to_thread.run_sync(made), media_type="application/json")

    app.add_route(f"{PREFIX}/openapi.json", schema, include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Process:
    """What whoever serves an application must know of it."""

    beside: Beside
    health: Health
    registry: CollectorRegistry


class LastResort:
    """What nobody expected is logged and answered with 500, and the connection stays usable."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            log.exception("%s %s failed", scope.get("method"), route_of(scope))
            if started:
                raise
            answer = _answer(
                500, "the platform failed to answer", "its log has the reason; send the request again later"
            )
            await answer(scope, receive, send)


def answer_refused(request: Request, error: Refused) -> JSONResponse:
    """An error as every route answers it."""
    headers = {}
    if isinstance(error, TooOften | Unavailable):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _answer(error.status, error.what, error.hint, headers)


def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """FastAPI's own finding as one line: field, rule, value."""
    return answer_refused(request, broken_rule(error.errors()[0], inside=1))


def _http(request: Request, error: HTTPException) -> JSONResponse:
    if error.status_code == 400:  # what FastAPI says of a body that is not even text
        return _answer(422, "body: expected JSON in UTF-8", "correct it, then send it again")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))
    hint = f"{PREFIX}/openapi.json lists every path and method"
    return _answer(
        error.status_code, f"{request.method} {shown(request.url.path)}: {error.detail}", hint, headers
    )


def _allowed(request: Request) -> list[str]:
    """The path's methods (RFC 9110, 15.5.6): the router itself names those of one route alone."""
    return [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def _answer(status: int, what: str, hint: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"success": False, "error": what, "hint": hint}, status, headers)


_HANDLERS: dict[Any, Callable[..., JSONResponse]] = {
    Refused: answer_refused,
    RequestValidationError: _invalid,
    HTTPException: _http,
}
