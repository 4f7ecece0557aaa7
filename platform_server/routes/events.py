"""`events`: what happened, the newest first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from platform_server import events
from platform_server.api import Meta, Served, Success, View, Window, errors, page, requires
from platform_server.permissions import Caller, Permission
from platform_server.tables import Event

router = APIRouter(prefix="/events", tags=["events"])

_Read = Annotated[Caller, Depends(requires(Permission.NODES_READ))]


class EventView(View):
    """An event: its kind, how bad it is, who caused it, and the facts in `payload`."""

    id: UUID
    kind: str
    severity: str
    source: str
    correlation_id: str | None
    payload: dict[str, Any]
    emitted_at: datetime


class EventsData(View):
    """A page of events."""

    events: Sequence[EventView]
    count: int
    meta: Meta


class EventWindow(Window):
    """Which events."""

    kind_prefix: Annotated[str, Field(max_length=200, description="the start of their kind")] = ""
    correlation_id: Annotated[str | None, Field(max_length=200)] = None


@router.get("", responses=errors(401, 403))
async def index(
    caller: _Read, platform: Served, window: Annotated[EventWindow, Query()]
) -> Success[EventsData]:
    """The account's events, by choice those whose kind starts with a prefix."""
    rows = await platform.database.read(
        lambda on: events.recent(
            on,
            caller.account_id,
            limit=window.limit + 1,
            kind_prefix=window.kind_prefix,
            before=window.before,
            correlation_id=window.correlation_id,
        )
    )
    shown, meta = page(rows, window)
    views = [view(row) for row in shown]
    return Success(data=EventsData(events=views, count=len(views), meta=meta))


def view(row: Event) -> EventView:
    """An event as it is answered."""
    return EventView(
        id=row.id,
        kind=row.kind,
        severity=row.severity,
        source=row.source,
        correlation_id=row.correlation_id,
        payload=row.payload,
        emitted_at=row.created_at,
    )
