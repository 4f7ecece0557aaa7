"""The operators' actions by the tutorial's names, as data: REST and MCP are made of this one table.

An action takes its parameters as a model, works in the caller's account alone, and answers with a model. The
caller's permission is checked by whoever calls `run`, so that every surface documents it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from platform_server import defaults, node_platforms, publications
from platform_server.api import Body, View
from platform_server.permissions import Caller, Permission
from platform_server.publication_view import PublicationView, view
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Publication

_Id = Annotated[UUID, Field(strict=False)]
_PlatformId = Annotated[_Id, Field(description="a node platform of the account")]
_PublicationId = Annotated[_Id, Field(description="a publication of the account")]


class Effect(Enum):
    """What an action does to what is there, and whether repeating it does more."""

    READS = "changes nothing"
    ADDS = "adds something, once more each time"
    SETS = "replaces what is there, and nothing more when it is repeated"
    CHANGES = "replaces what is there, and something else when it is repeated"


Run = Callable[[Platform, Caller, Any], Awaitable[BaseModel]]
Making = Callable[[Session, Platform, Caller, Any], BaseModel]


@dataclass(frozen=True, slots=True)
class Secret:
    """The field of an answer that is shown once, on which it has a `note`; and the unit of work that makes
    the answer, so that whoever must not show the secret keeps it in the transaction that made it.
    """

    field: str
    make: Making


@dataclass(frozen=True, slots=True)
class Action:
    """One action: its name, what it is for, and the models of its parameters and its answer."""

    name: str
    summary: str
    permission: Permission
    effect: Effect
    params: type[BaseModel]
    result: type[BaseModel]
    run: Run
    secret: Secret | None = None


def written(make: Making) -> Run:
    """An action that is one unit of work."""

    async def run(platform: Platform, caller: Caller, params: Any) -> BaseModel:
        return await platform.database.write(lambda on: make(on, platform, caller, params))

    return run


class ListPublications(Body):
    """Which publications."""

    node_platform_id: Annotated[_Id | None, Field(description="only this node platform's")] = None
    status: Annotated[
        Annotated[Status, Field(strict=False)] | None, Field(description="only those in this state")
    ] = None
    limit: Annotated[int, Field(ge=1, le=200, description="how many at most")] = 50


class Publications(View):
    """Publications, the newest first."""

    publications: Sequence[PublicationView]
    count: int


async def list_publications(platform: Platform, caller: Caller, params: ListPublications) -> Publications:
    def read(session: Session) -> Sequence[PublicationView]:
        rows = publications.listing(
            session, caller, params.limit, platform_id=params.node_platform_id, status=params.status
        )
        default = publications.defaults(session, rows)
        return [view(row, default) for row in rows]

    found = await platform.database.read(read)
    return Publications(publications=found, count=len(found))


class SetDefault(Body):
    """The publication, and by choice the platform that it must be of."""

    publication_id: _PublicationId
    node_platform_id: Annotated[_Id | None, Field(description="refuse a publication of another one")] = None


class DefaultSet(View):
    """What new nodes boot from now on."""

    set_default: Literal[True] = True
    publication_id: UUID
    node_platform_id: UUID
    oci_ref: str | None
    oci_digest: str | None
    git_sha: str | None
    prior_publication_id: UUID | None


async def set_default(platform: Platform, caller: Caller, params: SetDefault) -> DefaultSet:
    changed = await platform.database.write(
        lambda on: defaults.set_default(
            on, caller, params.publication_id, params.node_platform_id, platform.clock()
        )
    )
    return default_set(changed)


def default_set(changed: defaults.Changed) -> DefaultSet:
    """What new nodes boot, as it is answered."""
    return DefaultSet(**_image(changed.row), prior_publication_id=changed.prior_id)


class Rollback(Body):
    """The platform, and which publication; else the one published before the default."""

    node_platform_id: _PlatformId
    publication_id: Annotated[_Id | None, Field(description="else the one published before the default")] = (
        None
    )


class RolledBack(View):
    """What new nodes boot from now on, and what they booted before."""

    rolled_back: Literal[True] = True
    platform_id: UUID
    node_platform_id: UUID
    publication_id: UUID
    activated_publication_id: UUID
    oci_ref: str | None
    oci_digest: str | None
    git_sha: str | None
    prior_publication_id: UUID | None


async def rollback(platform: Platform, caller: Caller, params: Rollback) -> RolledBack:
    changed = await platform.database.write(
        lambda on: defaults.rollback(
            on, caller, params.node_platform_id, params.publication_id, platform.clock()
        )
    )
    return RolledBack(
        **_image(changed.row),
        platform_id=changed.row.node_platform_id,
        activated_publication_id=changed.row.id,
        prior_publication_id=changed.prior_id,
    )


class SetRetention(Body):
    """How many published images a platform keeps, 1 to 50."""

    node_platform_id: _PlatformId
    retention_count: Annotated[int, Field(description="1 to 50", examples=[5])]


class RetentionSet(View):
    """How many it keeps from now on."""

    updated: Literal[True] = True
    node_platform_id: UUID
    disk_image_retention_count: int


async def set_retention(platform: Platform, caller: Caller, params: SetRetention) -> RetentionSet:
    row = await platform.database.write(
        lambda on: node_platforms.set_retention(
            on, caller, params.node_platform_id, params.retention_count, platform.clock()
        )
    )
    return RetentionSet(node_platform_id=row.id, disk_image_retention_count=row.disk_image_retention_count)


ACTIONS: Sequence[Action] = (
    Action(
        "system_list_disk_image_publications",
        "The account's publications, the newest first.",
        Permission.MODULES_READ,
        Effect.READS,
        ListPublications,
        Publications,
        list_publications,
    ),
    Action(
        "system_set_default_disk_image_publication",
        "Have new nodes boot a published image; nodes that run keep theirs.",
        Permission.MODULES_UPDATE,
        Effect.SETS,
        SetDefault,
        DefaultSet,
        set_default,
    ),
    Action(
        "system_rollback_disk_image",
        "Have new nodes boot an earlier image again, and retire the present one.",
        Permission.ROLLBACK_DISK_IMAGE,
        Effect.CHANGES,
        Rollback,
        RolledBack,
        rollback,
    ),
    Action(
        "system_set_disk_image_retention",
        "Keep this many published images; older ones are retired, and purged after the grace.",
        Permission.MODULES_UPDATE,
        Effect.SETS,
        SetRetention,
        RetentionSet,
        set_retention,
    ),
)


def _image(row: Publication) -> dict[str, Any]:
    return {
        "publication_id": row.id,
        "node_platform_id": row.node_platform_id,
        "oci_ref": publications.pinned(row),
        "oci_digest": row.oci_digest,
        "git_sha": row.git_sha,
    }
