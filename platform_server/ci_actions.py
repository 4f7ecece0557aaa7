"""The operators' actions about pipelines, as data: their webhooks, their workers, and what happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field
from sqlalchemy.orm import Session

from platform_server import events, webhooks, workers
from platform_server.actions import Action, Effect, Secret, written
from platform_server.api import Body, View
from platform_server.errors import Invalid
from platform_server.permissions import Caller, Permission
from platform_server.routes.ci_workers import NewWorker, WorkerToken, WorkerView, shown_once
from platform_server.routes.ci_workers import view as worker_view
from platform_server.routes.events import EventView
from platform_server.routes.events import view as event_view
from platform_server.routes.webhooks import PATH, WebhookSecret, WebhookView, with_secret
from platform_server.state_folder import Platform

_Id = Annotated[UUID, Field(strict=False)]

# As many rows as a page of REST can have.
_MOST = 200


class Nothing(Body):
    """No parameters."""


class ProvisionWebhook(Body):
    """What the webhook is called; by choice under which address pipelines reach the platform."""

    label: Annotated[
        str,
        Field(
            description="1 to 100 characters, unlike every other webhook's of the account",
            examples=["debian-minimal"],
        ),
    ]
    platform_api_base: Annotated[
        Annotated[str, Field(pattern=r"^https?://[!\"$->A-~]{1,200}$")] | None,
        Field(description="the address that webhook_url starts with; else the platform's own"),
    ] = None


class Webhooks(View):
    """The newest webhooks."""

    webhooks: Sequence[WebhookView]
    count: int


class Workers(View):
    """The newest CI workers, by the reference's name and by the tutorial's."""

    ci_workers: Sequence[WorkerView]
    workers: Sequence[WorkerView]
    count: int


class TerminateWorker(Body):
    """Which worker, by the reference's name or the tutorial's."""

    worker_id: Annotated[_Id | None, Field(description="a CI worker of the account")] = None
    id: Annotated[_Id | None, Field(description="the same by another name: give one of them")] = None

    @property
    def worker(self) -> UUID:
        """The one that is given. Raises Invalid for none, and for both."""
        given = [each for each in (self.worker_id, self.id) if each is not None]
        if len(given) != 1:
            raise Invalid(field="worker_id", value=given or None, rule="a worker's id, here or as id")
        return given[0]


class Terminated(View):
    """A worker that is no more."""

    revoked: Literal[True] = True
    worker_id: UUID


class RecentEvents(Body):
    """Which events: those whose kind starts so, at most so many."""

    kind_prefix: Annotated[
        str, Field(max_length=200, description="the start of their kind", examples=["system.disk_image_"])
    ] = ""
    limit: Annotated[int, Field(ge=1, le=_MOST, description="how many at most")] = 50


class Events(View):
    """Events, the newest first."""

    events: Sequence[EventView]
    count: int


def provision_webhook(
    session: Session, platform: Platform, caller: Caller, params: ProvisionWebhook
) -> WebhookSecret:
    row, secret = webhooks.create(session, caller, platform.sealer, params.label, platform.clock())
    made = with_secret(platform, row, secret)
    if params.platform_api_base is None:
        return made
    base = params.platform_api_base.rstrip("/")
    return made.model_copy(update={"webhook_url": f"{base}{PATH}/{row.id}"})


async def list_webhooks(platform: Platform, caller: Caller, params: Nothing) -> Webhooks:
    rows = await platform.database.read(lambda on: webhooks.listing(on, caller, _MOST))
    views = [WebhookView.model_validate(row) for row in rows]
    return Webhooks(webhooks=views, count=len(views))


def provision_worker(session: Session, platform: Platform, caller: Caller, params: NewWorker) -> WorkerToken:
    return shown_once(*workers.create(session, caller, params.name, params.description, platform.clock()))


async def list_workers(platform: Platform, caller: Caller, params: Nothing) -> Workers:
    rows = await platform.database.read(lambda on: workers.listing(on, caller, _MOST))
    views = [worker_view(row) for row in rows]
    return Workers(ci_workers=views, workers=views, count=len(views))


async def terminate_worker(platform: Platform, caller: Caller, params: TerminateWorker) -> Terminated:
    worker_id = params.worker
    row = await platform.database.write(
        lambda on: workers.terminate(on, caller, worker_id, platform.clock())
    )
    return Terminated(worker_id=row.id)


async def recent_events(platform: Platform, caller: Caller, params: RecentEvents) -> Events:
    rows = await platform.database.read(
        lambda on: events.recent(on, caller.account_id, limit=params.limit, kind_prefix=params.kind_prefix)
    )
    views = [event_view(row) for row in rows]
    return Events(events=views, count=len(views))


ACTIONS: Sequence[Action] = (
    Action(
        "provision_disk_image_webhook",
        "Make a webhook and its secret, which is shown once.",
        Permission.WEBHOOKS_CREATE,
        Effect.ADDS,
        ProvisionWebhook,
        WebhookSecret,
        written(provision_webhook),
        Secret("webhook_secret", provision_webhook),
    ),
    Action(
        "system_list_disk_image_webhooks",
        "The account's webhooks, the newest first.",
        Permission.MODULES_READ,
        Effect.READS,
        Nothing,
        Webhooks,
        list_webhooks,
    ),
    Action(
        "system_provision_ci_worker",
        "Make a CI worker and its token, which is shown once.",
        Permission.CI_WORKERS_CREATE,
        Effect.ADDS,
        NewWorker,
        WorkerToken,
        written(provision_worker),
        Secret("token_plaintext", provision_worker),
    ),
    Action(
        "system_list_ci_workers",
        "The account's CI workers, the newest first.",
        Permission.CI_WORKERS_READ,
        Effect.READS,
        Nothing,
        Workers,
        list_workers,
    ),
    Action(
        "system_terminate_ci_worker",
        "Revoke a CI worker, for good.",
        Permission.CI_WORKERS_DELETE,
        Effect.SETS,
        TerminateWorker,
        Terminated,
        terminate_worker,
    ),
    Action(
        "recent_events",
        "The account's events, the newest first, by choice those whose kind starts with a prefix.",
        Permission.NODES_READ,
        Effect.READS,
        RecentEvents,
        Events,
        recent_events,
    ),
)
