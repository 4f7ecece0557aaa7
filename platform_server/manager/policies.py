"""What the Disk Image Manager may do on its own: one policy a category, for the account or a node platform.

    auto_approve        the manager does it
    notify_and_proceed  it does it, and an event of severity medium says so
    require_approval    it asks, and does it when somebody approves
    silent              it leaves it to people, and says nothing
    block               nobody does it, neither the manager nor a person

Below `block` a policy binds the manager alone: a person who holds the permission decides by acting. The most
specific policy counts: the node platform's, the account's, the default. The defaults are the reference's.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from platform_server.errors import Conflict
from platform_server.tables import AutonomyPolicy, Category, Policy

DEFAULTS: Mapping[Category, Policy] = {
    Category.PROMOTE: Policy.REQUIRE_APPROVAL,
    Category.ROLLBACK: Policy.REQUIRE_APPROVAL,
    Category.RETENTION: Policy.AUTO_APPROVE,
    Category.WEBHOOK_REVOKE: Policy.REQUIRE_APPROVAL,
    Category.WEBHOOK_ROTATE: Policy.NOTIFY_AND_PROCEED,
}
# These are about a node platform, which can have a policy of its own.
OF_PLATFORMS = frozenset({Category.PROMOTE, Category.ROLLBACK, Category.RETENTION})


def effective(
    session: Session, category: Category, account_id: UUID, platform_id: UUID | None = None
) -> Policy:
    """The policy that counts for an account's node platform, or for the account."""
    own = AutonomyPolicy.node_platform_id
    of_account = own.is_(None)
    counts = of_account if platform_id is None else or_(of_account, own == platform_id)
    rows = session.scalars(
        select(AutonomyPolicy).where(
            AutonomyPolicy.account_id == account_id, AutonomyPolicy.action_category == category, counts
        )
    ).all()
    found = {row.node_platform_id: row.policy for row in rows}
    return found.get(platform_id) or found.get(None) or DEFAULTS[category]


def require_unblocked(
    session: Session, category: Category, account_id: UUID, platform_id: UUID | None = None
) -> None:
    """Raise Conflict if nobody may do it."""
    if effective(session, category, account_id, platform_id) is Policy.BLOCK:
        raise Conflict(
            f"{category} is blocked by policy",
            "whoever may change policies can lift it: PATCH /api/v1/system/autonomy",
        )
