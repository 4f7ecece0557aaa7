"""Node platforms: their names, and the policy by which images are taken for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from pipelines.errors import UsageError
from platform_server.errors import Conflict, Invalid, missing
from platform_server.manager import policies
from platform_server.paging import newest_first
from platform_server.permissions import Caller, Permission
from platform_server.retention import retire_surplus
from platform_server.tables import Category, Instance, NodePlatform, Publication
from supply_chain.errors import InvalidReference
from supply_chain.reference import check_registry, check_repository
from supply_chain.verify.policy import Rule

ARCHITECTURES = ("amd64", "arm64")
RETENTION = range(1, 51)
DEFAULT_RETENTION = 3
# These decide which images are taken, and need a permission of their own.
POLICY = frozenset(
    {"cosign_identity_regexp", "cosign_issuer_regexp", "disk_image_retention_count", "trusted_registries"}
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MOST_REGISTRIES = 50


def create(session: Session, caller: Caller, fields: Mapping[str, Any], at: datetime) -> NodePlatform:
    """A new platform. Raises Invalid for a field that breaks a rule, Forbidden for policy without the
    permission.
    """
    name = fields.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Invalid(
            field="name", value=name, rule="1 to 100 letters, digits, . _ -, a letter or digit first"
        )
    if named(session, caller.account_id, name) is not None:
        raise Invalid(field="name", value=name, rule="a name that no platform of the account has yet")
    row = NodePlatform(
        account_id=caller.account_id,
        name=name,
        arch=ARCHITECTURES[0],
        trusted_registries=[],
        disk_image_retention_count=DEFAULT_RETENTION,
        created_at=at,
        updated_at=at,
    )
    _set(row, caller, {key: value for key, value in fields.items() if key != "name"})
    session.add(row)
    session.flush()
    return row


def update(
    session: Session, caller: Caller, platform_id: UUID, fields: Mapping[str, Any], at: datetime
) -> NodePlatform:
    """Change fields; a platform keeps its name and, once it has publications, its architecture.

    Raises Missing, Invalid, Forbidden, and Conflict when a policy blocks another retention count.
    """
    row = locked(session, caller, platform_id)
    if fields.get("name", row.name) != row.name:
        raise Invalid(
            field="name", value=fields["name"], rule=f"{row.name!r}: pipelines know it by its name"
        )
    if fields.get("arch", row.arch) != row.arch and _is_used(session, row):
        raise Invalid(field="arch", value=fields["arch"], rule=f"{row.arch!r}: it has publications")
    if fields.get("disk_image_retention_count", row.disk_image_retention_count) != (
        row.disk_image_retention_count
    ):
        policies.require_unblocked(session, Category.RETENTION, row.account_id, row.id)
    _set(row, caller, {key: value for key, value in fields.items() if key != "name"})
    row.updated_at = at
    retire_surplus(session, row, at)
    return row


def set_retention(
    session: Session, caller: Caller, platform_id: UUID, count: object, at: datetime
) -> NodePlatform:
    """Keep that many published images from now on. Raises Missing, Invalid for anything but 1 to 50, and
    Conflict when a policy blocks it.
    """
    row = locked(session, caller, platform_id)
    policies.require_unblocked(session, Category.RETENTION, row.account_id, row.id)
    row.disk_image_retention_count = check_retention("retention_count", count)
    row.updated_at = at
    retire_surplus(session, row, at)
    return row


def delete(session: Session, caller: Caller, platform_id: UUID) -> None:
    """Delete a platform that never had a publication. Raises Conflict otherwise: rows are kept for ever."""
    row = locked(session, caller, platform_id)
    if _is_used(session, row):
        raise Conflict(
            f"node platform {row.name} has publications, which are kept for ever",
            "make another platform, and leave this one",
        )
    session.delete(row)


def get(session: Session, caller: Caller, platform_id: UUID) -> NodePlatform:
    """One of the account's platforms. Raises Missing."""
    return _one(session, caller, platform_id, lock=False)


def locked(session: Session, caller: Caller, platform_id: UUID) -> NodePlatform:
    """The same, held until the transaction ends."""
    return _one(session, caller, platform_id, lock=True)


def hold(session: Session, platform_id: UUID) -> NodePlatform:
    """A platform of whatever account, held until the transaction ends."""
    return session.get_one(NodePlatform, platform_id, with_for_update=True, populate_existing=True)


def hold_of(session: Session, publication_id: UUID) -> tuple[Publication, NodePlatform]:
    """A publication and its platform, held until the transaction ends, as they are by now.

    In this order everywhere, so that no two transactions wait for each other.
    """
    owner = select(Publication.node_platform_id).where(Publication.id == publication_id)
    platform = session.scalars(
        select(NodePlatform)
        .where(NodePlatform.id == owner.scalar_subquery())
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()
    row = session.get_one(Publication, publication_id, with_for_update=True, populate_existing=True)
    return row, platform


def named(session: Session, account_id: UUID, name: str) -> NodePlatform | None:
    """The account's platform of that name."""
    return session.scalars(
        select(NodePlatform).where(NodePlatform.account_id == account_id, NodePlatform.name == name)
    ).one_or_none()


def listing(
    session: Session, caller: Caller, limit: int, before: UUID | None = None
) -> Sequence[NodePlatform]:
    """The account's platforms, the newest first."""
    have = {NodePlatform.account_id: caller.account_id}
    return session.scalars(newest_first(select(NodePlatform), have, NodePlatform.id, before, limit)).all()


def check_retention(field: str, count: object) -> int:
    """How many published images are kept. Raises Invalid."""
    if not isinstance(count, int) or isinstance(count, bool) or count not in RETENTION:
        raise Invalid(
            field=field,
            value=count,
            rule=f"a whole number, must be ≥{RETENTION[0]} and ≤{RETENTION[-1]}",
        )
    return count


def _one(session: Session, caller: Caller, platform_id: UUID, *, lock: bool) -> NodePlatform:
    query = select(NodePlatform).where(
        NodePlatform.id == platform_id, NodePlatform.account_id == caller.account_id
    )
    row = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise missing("node platform", platform_id)
    return row


def _set(row: NodePlatform, caller: Caller, fields: Mapping[str, Any]) -> None:
    if fields.keys() & POLICY:
        caller.require(Permission.MANAGE_DISK_IMAGE_POLICY)
    for field, value in fields.items():
        setattr(row, field, _CHECKS[field](field, value))


def _is_used(session: Session, row: NodePlatform) -> bool:
    publications = exists().where(Publication.node_platform_id == row.id)
    instances = exists().where(Instance.node_platform_id == row.id)
    return bool(session.scalar(select(publications | instances)))


def _arch(field: str, value: object) -> str:
    if value not in ARCHITECTURES:
        raise Invalid(field=field, value=value, rule=f"one of {', '.join(ARCHITECTURES)}")
    return str(value)


def _description(field: str, value: str | None) -> str | None:
    if value is not None and (len(value) > 1000 or "\x00" in value):
        raise Invalid(field=field, value=value, rule="at most 1000 characters")
    return value


def _regexp(field: str, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        Rule(value, regexp=True)
    except UsageError as error:
        raise Invalid(what=f"{field}: {error.what}", hint=error.hint) from None
    return value


def _registries(field: str, value: Sequence[str]) -> list[str]:
    if len(value) > _MOST_REGISTRIES:
        raise Invalid(field=field, value=len(value), rule=f"at most {_MOST_REGISTRIES} registries")
    return [check_trusted(each, field) for each in value]


def check_trusted(entry: str, field: str = "trusted_registries") -> str:
    """An entry of an allow-list: `host[:port]`, or one repository or folder there. Raises Invalid."""
    registry, slash, path = entry.partition("/")
    try:
        check_registry(registry)
        if slash:
            check_repository(path)
    except InvalidReference as error:
        raise Invalid(what=f"{field}: {error.what}", hint="write host[:port] or host[:port]/path") from None
    return entry


_CHECKS: Mapping[str, Any] = {
    "arch": _arch,
    "description": _description,
    "cosign_identity_regexp": _regexp,
    "cosign_issuer_regexp": _regexp,
    "disk_image_retention_count": check_retention,
    "trusted_registries": _registries,
}
