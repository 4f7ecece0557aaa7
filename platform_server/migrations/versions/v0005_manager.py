"""Each account's Disk Image Manager, its policies and its approval requests."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from platform_server.identifiers import new_id

revision = "0005"
down_revision = "0004"

TIME = sa.DateTime(timezone=True)
OF_ACCOUNT = sa.text("node_platform_id IS NULL")
PENDING = sa.text("status = 'pending'")
CATEGORY = sa.Enum(
    "system.disk_image_publication_promote",
    "system.disk_image_publication_rollback",
    "system.disk_image_retention_update",
    "system.disk_image_webhook_revoke",
    "system.disk_image_webhook_rotate_secret",
    native_enum=False,
    create_constraint=True,
    length=64,
    name="category",
)


def _words(name: str, *words: str) -> sa.Enum:
    return sa.Enum(*words, native_enum=False, create_constraint=True, length=24, name=name)


def upgrade() -> None:
    agents = op.create_table(
        "agents",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", _words("agentstatus", "active", "paused"), nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_agents_account_id"),
        sa.PrimaryKeyConstraint("id", name="pk_agents"),
        sa.UniqueConstraint("account_id", "name", name="uq_agents_account_id_name"),
    )
    accounts = sa.table("accounts", sa.column("id", sa.Uuid()))
    at = datetime.now(UTC)
    rows = [
        {
            "id": new_id(),
            "account_id": account,
            "name": "Disk Image Manager",
            "status": "active",
            "created_at": at,
            "updated_at": at,
        }
        for account in op.get_bind().scalars(sa.select(accounts.c.id)).all()
    ]
    op.bulk_insert(agents, rows)
    op.create_table(
        "autonomy_policies",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("node_platform_id", sa.Uuid()),
        sa.Column("action_category", CATEGORY, nullable=False),
        sa.Column(
            "policy",
            _words("policy", "auto_approve", "notify_and_proceed", "require_approval", "silent", "block"),
            nullable=False,
        ),
        sa.Column("updated_by_id", sa.Uuid()),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_autonomy_policies_account_id"),
        sa.ForeignKeyConstraint(
            ["node_platform_id"],
            ["node_platforms.id"],
            name="fk_autonomy_policies_node_platform_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["updated_by_id"], ["users.id"], name="fk_autonomy_policies_updated_by_id"),
        sa.PrimaryKeyConstraint("id", name="pk_autonomy_policies"),
        sa.UniqueConstraint(
            "node_platform_id",
            "action_category",
            name="uq_autonomy_policies_node_platform_id_action_category",
        ),
    )
    op.create_index(
        "uq_autonomy_policies_account",
        "autonomy_policies",
        ["account_id", "action_category"],
        unique=True,
        sqlite_where=OF_ACCOUNT,
        postgresql_where=OF_ACCOUNT,
    )
    op.create_table(
        "promotion_candidates",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("publication_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["id"], ["node_platforms.id"], name="fk_promotion_candidates_id"),
        sa.ForeignKeyConstraint(
            ["publication_id"], ["publications.id"], name="fk_promotion_candidates_publication_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_promotion_candidates"),
    )
    op.create_table(
        "approval_requests",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("agent_id", sa.Uuid(), nullable=False),
        sa.Column("action_category", CATEGORY, nullable=False),
        sa.Column("natural_key", sa.Text(), nullable=False),
        sa.Column("node_platform_id", sa.Uuid(), nullable=False),
        sa.Column("publication_id", sa.Uuid(), nullable=False),
        sa.Column("prior_publication_id", sa.Uuid()),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column(
            "status",
            _words("requeststatus", "pending", "approved", "rejected", "superseded"),
            nullable=False,
        ),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("decided_at", TIME),
        sa.Column("decided_by_id", sa.Uuid()),
        sa.Column("decided_by", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_approval_requests_account_id"),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_approval_requests_agent_id"),
        sa.ForeignKeyConstraint(
            ["node_platform_id"], ["node_platforms.id"], name="fk_approval_requests_node_platform_id"
        ),
        sa.ForeignKeyConstraint(
            ["publication_id"], ["publications.id"], name="fk_approval_requests_publication_id"
        ),
        sa.ForeignKeyConstraint(
            ["prior_publication_id"],
            ["publications.id"],
            name="fk_approval_requests_prior_publication_id",
        ),
        sa.ForeignKeyConstraint(["decided_by_id"], ["users.id"], name="fk_approval_requests_decided_by_id"),
        sa.PrimaryKeyConstraint("id", name="pk_approval_requests"),
    )
    for columns in (["account_id", "id"], ["account_id", "status", "id"], ["natural_key", "decided_at"]):
        op.create_index(f"ix_approval_requests_{'_'.join(columns)}", "approval_requests", columns)
    for name, columns in (
        ("question", ["account_id", "natural_key"]),
        ("platform", ["node_platform_id", "action_category"]),
    ):
        op.create_index(
            f"uq_approval_requests_{name}",
            "approval_requests",
            columns,
            unique=True,
            sqlite_where=PENDING,
            postgresql_where=PENDING,
        )


def downgrade() -> None:
    for table in ("approval_requests", "promotion_candidates", "autonomy_policies", "agents"):
        op.drop_table(table)
