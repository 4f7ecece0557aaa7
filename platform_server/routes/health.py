"""`/healthz`, `/readyz` and `/metrics`: what machines that watch the platform ask, outside of its API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel

from platform_server.api import requires
from platform_server.health import OK, Health
from platform_server.permissions import Caller, Permission

_Metrics = Annotated[Caller, Depends(requires(Permission.METRICS_READ))]


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Each check by name: `ok`, or what is wrong."""

    status: Literal["ready", "not ready"]
    checks: Mapping[str, str]


def router(health: Health, registry: CollectorRegistry) -> APIRouter:
    """The routes of one process."""
    routes = APIRouter(tags=["health"])
    turn = CapacityLimiter(1)

    @routes.get("/healthz")
    async def healthz() -> Alive:
        """Answers as long as the process can answer anything: whether to restart it."""
        return Alive()

    @routes.get("/readyz", responses={503: {"model": Ready}})
    async def readyz() -> Response:
        """Whether to send requests here: 200, or 503 with what is wrong."""
        checks = await health.check()
        ready = all(found == OK for found in checks.values())
        told = Ready(status="ready" if ready else "not ready", checks=checks)
        return JSONResponse(told.model_dump(), 200 if ready else 503)

    @routes.get("/metrics", response_class=Response, include_in_schema=False)
    async def metrics(request: Request, caller: _Metrics) -> Response:
        """What there is to watch, for Prometheus."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await to_thread.run_sync(encode, registry, limiter=turn)
        return Response(text, media_type=content_type)

    return routes
