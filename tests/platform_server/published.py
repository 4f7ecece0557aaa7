"""Publications in every state, straight in the database, with the platform's default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from platform_server.manager import candidates
from platform_server.state_folder import Platform
from platform_server.states import Status, Transition, move
from platform_server.tables import NodePlatform
from tests.platform_server.clock import Clock
from tests.platform_server.rows import publication, verified

_STEPS = {
    Status.QUEUED: (),
    Status.VERIFYING: (Transition.START_VERIFYING,),
    Status.AWAITING_UPLOAD: (Transition.AWAIT_UPLOAD,),
    Status.FAILED: (Transition.MARK_FAILED,),
    Status.PUBLISHED: (Transition.START_VERIFYING, Transition.MARK_PUBLISHED),
    Status.RETIRED: (Transition.START_VERIFYING, Transition.MARK_PUBLISHED, Transition.RETIRE),
    Status.PURGED: (
        Transition.START_VERIFYING,
        Transition.MARK_PUBLISHED,
        Transition.RETIRE,
        Transition.PURGE,
    ),
}


@dataclass
class Publish:
    """Makes publications of one node platform, a minute apart; the first published one is its default."""

    platform: Platform
    node_platform_id: UUID
    clock: Clock
    count: int = 0

    def __call__(self, status: Status = Status.PUBLISHED, **fields: Any) -> str:
        self.count += 1
        at = self.clock.pass_by(minutes=1)

        def work(session: Session) -> str:
            owner = session.get_one(NodePlatform, self.node_platform_id)
            row = publication(session, at, owner, **verified(self.count))
            for step in _STEPS[status]:
                move(row, step, at)
                session.flush()
            if status is Status.PUBLISHED and owner.default_publication_id is None:
                owner.default_publication_id = row.id
            elif status is Status.PUBLISHED:
                candidates.offer(session, owner, row, at)
            for name, value in fields.items():
                setattr(row, name, value)
            return str(row.id)

        return self.platform.database.write_now(work)
