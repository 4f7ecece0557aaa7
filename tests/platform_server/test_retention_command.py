"""`disk-image platform retention`, as a process beside nothing else."""

from __future__ import annotations

import json
from uuid import UUID

from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import Publication
from tests.platform_server.made import Made
from tests.platform_server.published import Publish
from tests.system.command import disk_image


def test_it_sweeps_every_platform_and_a_dry_run_changes_nothing(
    made: Made, platform: Platform, platform_id: str, publish: Publish
) -> None:
    failed = UUID(publish(Status.FAILED))
    for _ in range(5):
        publish()
    argv = ("platform", "retention", *made.argv)

    def status() -> Status:
        return platform.database.read_now(lambda on: on.get_one(Publication, failed).status)

    counts = {"retired": 1, "stuck_retired": 1, "purged": 0, "blocked": 0}
    dry = disk_image(*argv, "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    assert json.loads(dry.stdout) == {"dry_run": True, "per_platform": {platform_id: counts}}
    assert status() is Status.FAILED
    swept = disk_image(*argv)
    assert swept.returncode == 0, swept.stderr
    assert swept.stdout == f"{platform_id}: 2 retired, 0 purged, 0 blocked\n"
    assert status() is Status.RETIRED


def test_what_is_blocked_is_a_failure_and_logged(made: Made, platform_id: str, publish: Publish) -> None:
    """No registry is trusted here, so none is asked."""
    publish(Status.RETIRED)
    swept = disk_image("platform", "retention", *made.argv, "--json")
    assert swept.returncode == 1
    assert json.loads(swept.stdout)["per_platform"][platform_id]["blocked"] == 1
    assert "registry registry.example/os/debian: expected one of none" in swept.stderr
    assert "Traceback" not in swept.stderr
