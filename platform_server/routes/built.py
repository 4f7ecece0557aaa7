"""`POST webhooks/disk_image/built/:id`: what pipelines report images with."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from platform_server.answers import Answer, Reason, refused
from platform_server.errors import TooLarge, Unavailable
from platform_server.intake import Intake, Received
from platform_server.metrics import LIMITED, WEBHOOKS
from platform_server.payload import Built
from platform_server.proxies import sender_of
from platform_server.signatures import SignatureHeaders
from platform_server.state_folder import Platform


class Told(BaseModel):
    """What the sender is told: `status` is the truth, whatever the HTTP status."""

    success: bool
    status: Literal["queued", "idempotent_hit", "conflict", "error"]
    reason: Reason | None
    publication_id: UUID | None
    note: str | None


_SCHEMA = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": Built.model_json_schema()}}}
}
# as SignatureHeaders has them
_HEADERS = ("X-Powernode-Signature", "webhook-id", "webhook-timestamp", "webhook-signature")


class _Direct(APIRoute):
    """Documented as any other route, and answered without FastAPI's dependencies: they would cost as much as
    checking and recording the delivery.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive)
        signature = (request.headers.get(name) for name in _HEADERS)
        response: Response = await self.endpoint(request, scope["path_params"]["webhook_id"], *signature)
        await response(scope, receive, send)


def add_route(router: APIRouter, platform: Platform, prefix: str) -> None:
    """The webhook's route; how often it is called is counted in here."""
    intake = Intake(platform)
    limit = platform.settings.limits.webhook_body

    async def built(
        request: Request,
        webhook_id: str,
        plain: Annotated[str | None, Header(alias=_HEADERS[0])] = None,
        identifier: Annotated[str | None, Header(alias=_HEADERS[1])] = None,
        timestamp: Annotated[str | None, Header(alias=_HEADERS[2])] = None,
        signature: Annotated[str | None, Header(alias=_HEADERS[3])] = None,
    ) -> Response:
        """Report an image that is in a registry."""
        try:
            body = await _read(request, limit)
        except TooLarge as error:
            LIMITED.labels("webhook_body").inc()
            return _respond(refused(Reason.TOO_LARGE, error.what))
        headers = SignatureHeaders(plain, identifier, timestamp, signature)
        address = sender_of(request.client.host) if request.client else ""
        try:
            answer = await intake.take(Received(webhook_id, body, headers, address))
        except Unavailable as error:
            answer = refused(Reason.UNAVAILABLE, error.what, wait=error.retry_after)
        return _respond(answer)

    router.add_api_route(
        f"{prefix}/webhooks/disk_image/built/{{webhook_id}}",
        built,
        methods=["POST"],
        tags=["webhook"],
        status_code=202,
        response_model=Told,
        responses={status: {"model": Told} for status in (200, 401, 404, 408, 409, 413, 422, 429, 503)},
        openapi_extra=_SCHEMA,
        route_class_override=_Direct,
    )


async def _read(request: Request, limit: int) -> bytes:
    """The body's bytes as they come, at most `limit`. Raises TooLarge."""
    said = request.headers.get("content-length", "0")
    body = bytearray()
    if not said.isdecimal() or int(said) <= limit:
        async for part in request.stream():
            body += part
            if len(body) > limit:
                break
        else:
            return bytes(body)
    raise TooLarge(f"body: expected at most {limit} bytes, found more", "send the fields of one image alone")


def _respond(answer: Answer) -> JSONResponse:
    told = Told(
        success=answer.http < 400,
        status=answer.status,
        reason=answer.reason,
        publication_id=answer.publication_id,
        note=answer.note,
    )
    WEBHOOKS.labels(answer.status, answer.reason or "").inc()
    bind_contextvars(outcome=answer.status, reason=answer.reason)
    if answer.publication_id is not None:
        bind_contextvars(publication_id=str(answer.publication_id))
    if answer.correlation_id is not None:
        bind_contextvars(correlation_id=answer.correlation_id)
    headers = {} if answer.retry_after is None else {"Retry-After": str(max(1, round(answer.retry_after)))}
    return JSONResponse(told.model_dump(mode="json"), answer.http, headers)
