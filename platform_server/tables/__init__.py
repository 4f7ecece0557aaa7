"""The database's tables. Column names are those that the answers of the API use.

Times are UTC. Ids are UUIDs of version 7: ordered by creation, so that a list's next page starts after the
last id of the one before. What has a name in one account only carries the account's id in its unique keys.

Whoever imports one table has all of them in `Base.metadata`: migrations and backups look there.
"""

from __future__ import annotations

from platform_server.tables.accounts import (
    MANAGER,
    Account,
    Event,
    SecretPickup,
    Token,
    User,
    Worker,
    WorkerRole,
    WorkerStatus,
)
from platform_server.tables.base import (
    Base,
    UtcTime,
)
from platform_server.tables.images import (
    Instance,
    InstanceStatus,
    Job,
    NodePlatform,
    Publication,
    Purge,
    is_in,
)
from platform_server.tables.manager import (
    Agent,
    AgentStatus,
    ApprovalRequest,
    AutonomyPolicy,
    Candidate,
    Category,
    Policy,
    RequestStatus,
)
from platform_server.tables.webhooks import (
    Delivery,
    Webhook,
    WebhookStatus,
)

__all__ = [
    "MANAGER",
    "Account",
    "Agent",
    "AgentStatus",
    "ApprovalRequest",
    "AutonomyPolicy",
    "Base",
    "Candidate",
    "Category",
    "Delivery",
    "Event",
    "Instance",
    "InstanceStatus",
    "Job",
    "NodePlatform",
    "Policy",
    "Publication",
    "Purge",
    "RequestStatus",
    "SecretPickup",
    "Token",
    "User",
    "UtcTime",
    "Webhook",
    "WebhookStatus",
    "Worker",
    "WorkerRole",
    "WorkerStatus",
    "is_in",
]
