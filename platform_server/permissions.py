"""What a token may do: the reference's permissions by their names, and who asks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from platform_server.errors import Forbidden


class Permission(StrEnum):
    """Names as the reference has them."""

    NODES_READ = "system.nodes.read"
    MODULES_READ = "system.modules.read"
    MODULES_UPDATE = "system.modules.update"
    PLATFORMS_READ = "system.platforms.read"
    PLATFORMS_CREATE = "system.platforms.create"
    PLATFORMS_UPDATE = "system.platforms.update"
    PLATFORMS_DELETE = "system.platforms.delete"
    MANAGE_DISK_IMAGE_POLICY = "system.platforms.manage_disk_image_policy"
    PUBLISH_DISK_IMAGE = "system.platforms.publish_disk_image"
    ROLLBACK_DISK_IMAGE = "system.platforms.rollback_disk_image"
    WEBHOOKS_READ = "system.disk_image_webhooks.read"
    WEBHOOKS_CREATE = "system.disk_image_webhooks.create"
    WEBHOOKS_DELETE = "system.disk_image_webhooks.delete"
    WEBHOOKS_ROTATE = "system.disk_image_webhooks.rotate_secret"
    CI_WORKERS_READ = "system.ci_workers.read"
    CI_WORKERS_CREATE = "system.ci_workers.create"
    CI_WORKERS_DELETE = "system.ci_workers.delete"
    CI_WORKERS_ROTATE = "system.ci_workers.rotate_token"
    INSTANCES_READ = "system.instances.read"
    INSTANCES_CREATE = "system.instances.create"
    INSTANCES_CONTROL = "system.instances.control"
    INFRA_TASKS_CONTROL = "system.infra_tasks.control"
    # not the reference's: what /metrics asks for, and what an action made for its caller alone
    METRICS_READ = "system.metrics.read"
    SECRETS_READ = "system.secrets.read"


# Held by administrators, who also have every permission of later versions.
EVERYTHING = "*"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever a token belongs to: a user, or a worker. All it sees and changes is its account's."""

    account_id: UUID
    name: str
    permissions: Collection[str]
    user_id: UUID | None = None
    worker_id: UUID | None = None

    def may(self, permission: Permission) -> bool:
        """Whether the caller holds the permission."""
        return EVERYTHING in self.permissions or permission in self.permissions

    def require(self, permission: Permission) -> None:
        """Raise Forbidden, naming the permission, unless the caller holds it."""
        if not self.may(permission):
            raise Forbidden(
                f"{self.name} lacks the permission {permission}",
                "ask an administrator: disk-image platform token --permission … makes a token that has it",
            )
