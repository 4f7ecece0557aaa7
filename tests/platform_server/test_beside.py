"""What a served platform does when nobody asks: it sweeps, tells of the stuck, and decides."""

from __future__ import annotations

import os
from collections.abc import Callable
from uuid import UUID

import pytest

from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Category, Policy, Publication
from tests.platform_server.api import Api
from tests.platform_server.made import Made
from tests.platform_server.process import process
from tests.platform_server.published import Publish

pytestmark = pytest.mark.one_database


def test_a_served_platform_sweeps_and_decides_by_itself(
    api: Api,
    made: Made,
    platform: Platform,
    platform_id: str,
    publish: Publish,
    wait_for: Callable[[Callable[[], bool]], None],
) -> None:
    """Everything here is months old for the process's clock."""
    path = f"/node_platforms/{platform_id}"
    policy = {"action_category": Category.PROMOTE, "policy": Policy.AUTO_APPROVE}
    api.patch("/autonomy", {"updates": [policy]})
    failed, waiting = UUID(publish(Status.FAILED)), publish(Status.QUEUED)
    _first, second = publish(), publish()
    part = platform.uploads / f"{waiting}.x.part"
    part.touch()
    os.utime(part, (0, 0))

    def is_retired() -> bool:
        return (
            platform.database.read_now(lambda on: on.get_one(Publication, failed).status) is Status.RETIRED
        )

    def is_told_of() -> bool:
        told = api.get("/events", kind_prefix="system.disk_image_publication_stuck")["events"]
        return [each["payload"]["publication_id"] for each in told] == [waiting]

    def is_promoted() -> bool:
        return bool(api.get(path)["node_platform"]["default_publication_id"] == second)

    done = (is_retired, is_told_of, is_promoted, lambda: not part.exists())
    assert not any(each() for each in done)
    with process(made):
        for each in done:
            wait_for(each)
