"""What everything that the platform does costs the database: the same, however much there is of what it is
not about. Counted is what each statement goes through.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import pytest
from sqlalchemy.orm import Session

from platform_server import gauges, purge, retention, secret_pickups, stuck, sweeps, upload_files
from platform_server.manager import tick
from platform_server.state_folder import Platform
from platform_server.states import Status
from platform_server.tables import NodePlatform, Publication, Webhook
from supply_chain.removal import Parts
from tests.platform_server.api import Api
from tests.platform_server.clock import Clock
from tests.platform_server.mixes import HISTORY, PRESENT, fill
from tests.platform_server.verifying import Trial
from tests.platform_server.work import work

ROWS = 2500
# A page of 200 rows; whoever goes through ROWS of them takes more.
INSTRUCTIONS, READ = 7000, 600
# These look at all that waits, or that a platform keeps: there is no more of it than there is to do or boot.
OF_THE_PRESENT = {
    "publish", "publish another", "set the retention", "sweep", "sweep dry", "look for the stuck",
    "count what waits", "introspect",
}  # fmt: skip
_Do = Callable[[], Any]
WORKERS = "/worker_api/disk_image_publications"


def most(platform: Platform) -> int:
    return INSTRUCTIONS if platform.database.is_sqlite else READ


def slow(platform: Platform, everything: Mapping[str, _Do]) -> dict[str, dict[str, int]]:
    """Statements that go through too much, by what was done."""
    found: dict[str, dict[str, int]] = {}
    for name, do in everything.items():
        with work(platform.database) as done:
            do()
        assert done, name
        dear = {each.text: each.cost for each in done if each.cost > most(platform)}
        if dear:
            found[name] = dear
    return found


def reads(api: Api, platform_id: object) -> dict[str, _Do]:
    """Every list and every page of an account."""

    def get(path: str) -> _Do:
        return lambda: api.get(path)

    def act(name: str, **params: Any) -> _Do:
        return lambda: api.post(f"/actions/{name}", params)

    path = f"/node_platforms/{platform_id}"
    pages = ["/node_platforms", "/disk_image_webhooks", "/ci_workers", "/approval_requests", "/events"]
    pages += [path, f"{path}/disk_image_publications", "/autonomy", "/agents"]
    pages += [f"{path}/disk_image_publications?status={each}" for each in Status]
    pages += ["/approval_requests?status=pending", "/events?kind_prefix=system.disk_image_published"]
    return {
        **{f"GET {each}": get(each) for each in pages},
        "introspect": act("agent_introspect"),
        "list publications": act("system_list_disk_image_publications"),
        "list published": act("system_list_disk_image_publications", status="published"),
        "list webhooks": act("system_list_disk_image_webhooks"),
        "list workers": act("system_list_ci_workers"),
        "list events": act("recent_events", limit=200),
        "list approval requests": act("list_approval_requests", limit=200),
    }


def turns(trial: Trial, api: Api) -> dict[str, _Do]:
    """What workers, sweeps, the manager and operators do."""
    platform, clock = trial.platform, trial.clock
    grace, path = platform.settings.schedule.grace, f"/node_platforms/{trial.node_platform.id}"
    worker = api.with_token(api.post("/ci_workers", {"name": "runner"})["token_plaintext"])
    ids: dict[str, str] = {}

    def publish(tag: str) -> _Do:
        def do() -> None:
            row = trial.verify(trial.images.ref(tag))
            assert row.status is Status.PUBLISHED, row.error_message
            ids["published"] = str(row.id)

        trial.images.push(tag, tag, commit=secrets.token_hex(20))
        return do

    def fail() -> None:
        row = trial.verify(trial.images.ref("missing"))
        assert row.status is Status.FAILED
        ids["failed"] = str(row.id)

    def repeat() -> None:
        assert trial.verify(trial.images.ref()).duplicate_of_id is not None

    def again() -> None:
        worker.post(f"{WORKERS}/process", {"publication_id": ids["failed"]})
        assert trial.work()

    def initiate() -> None:
        offer = {"platform_name": "debian", "sha256": "e" * 64, "size_bytes": 10, "git_sha": "e" * 40}
        worker.post(f"{WORKERS}/initiate", offer)

    def set_default() -> None:
        api.post(f"{path}/disk_image_publications/{ids['published']}/set_default")

    def set_retention() -> None:
        body = {"node_platform_id": str(trial.node_platform.id), "retention_count": 2}
        api.post("/actions/system_set_disk_image_retention", body)

    def sweep(dry: bool) -> _Do:
        async def run() -> None:
            await sweeps.sweep(platform, trial.node_platform.id, grace, dry_run=dry)

        return lambda: anyio.run(run)

    return {
        "repeat": repeat,
        "fail": fail,
        "again": again,
        "publish": publish("second"),
        "publish another": publish("third"),
        "tick": lambda: anyio.run(tick.tick, platform),
        "set default": set_default,
        "roll back": lambda: api.post(f"{path}/rollback_disk_image"),
        "the image to boot": lambda: api.get(f"{path}/disk_image"),
        "initiate": initiate,
        "initiate again": initiate,
        "set the retention": set_retention,
        "sweep dry": sweep(True),
        "sweep": sweep(False),
        "look for the stuck": lambda: anyio.run(sweeps.tell_of_stuck, platform),
        "forget secrets": lambda: trial.write(lambda on: secret_pickups.purge(on, clock())),
        "sweep uploads": lambda: anyio.run(upload_files.sweep, platform),
        "count what waits": lambda: trial.read(lambda on: gauges.count(on, clock())),
    }


def _prepared(trial: Trial) -> Publication:
    trial.images.push()
    first = trial.verify()
    assert first.status is Status.PUBLISHED, first.error_message
    secret = trial.platform.sealer.seal("pndis_x", f"webhook {trial.webhook_id}")
    trial.write(lambda on: setattr(on.get_one(Webhook, trial.webhook_id), "secret", secret))
    return first


def test_nothing_costs_more_after_a_long_history(api: Api, trial: Trial) -> None:
    fill(trial, HISTORY, ROWS, _prepared(trial))
    everything = {**reads(api, trial.node_platform.id), **turns(trial, api)}
    assert slow(trial.platform, everything) == {}


def test_a_backlog_slows_nobody_down_but_who_looks_through_it(api: Api, trial: Trial) -> None:
    fill(trial, PRESENT, ROWS, _prepared(trial))
    everything = {**reads(api, trial.node_platform.id), **turns(trial, api)}
    found = slow(trial.platform, everything)
    assert found.keys() <= OF_THE_PRESENT, {each: found[each] for each in found.keys() - OF_THE_PRESENT}


def test_another_account_s_history_costs_nothing(api: Api, other: Api, trial: Trial) -> None:
    """It has a few rows; all that a planner knows of is the other one's."""
    made = other.post("/node_platforms", {"node_platform": {"name": "debian"}})["id"]
    fill(trial, HISTORY, ROWS, _prepared(trial))
    other.post("/disk_image_webhooks", {"label": "pipeline"})
    assert slow(trial.platform, reads(other, made)) == {}


@pytest.fixture
def late(trial: Trial, clock: Clock) -> Trial:
    """A long history of what failed or was retired a month ago: sweeps have all of it to do."""
    fill(trial, HISTORY[:2], ROWS, _prepared(trial))
    clock.pass_by(days=30)
    return trial


def test_a_batch_of_a_sweep_costs_what_is_in_it(late: Trial) -> None:
    platform, at = late.platform, late.clock()
    grace = platform.settings.schedule.grace

    def retire(session: Session) -> int:
        owner = session.get_one(NodePlatform, late.node_platform.id)
        return retention.retire_stale(session, owner, at - grace, at)

    batches: list[tuple[int, int]] = []
    while not batches or batches[-1][0]:
        with work(platform.database) as done:
            count = late.write(retire)
        batches.append((count, max(each.cost for each in done if each.text.startswith("SELECT"))))
    assert [count for count, _ in batches[:-1]] == [retention.BATCH] * (len(batches) - 2) + [
        ROWS % 200 or 200
    ]
    # ten times what one row of a batch costs
    each = 100 if platform.database.is_sqlite else 20
    assert max(cost for _, cost in batches) <= each * retention.BATCH


def test_a_purge_begins_without_a_look_at_the_others(late: Trial) -> None:
    platform, at = late.platform, late.clock()
    grace = platform.settings.schedule.grace

    def due(session: Session) -> Any:
        return purge.due(session, session.get_one(NodePlatform, late.node_platform.id), at - grace)

    ids = late.read(due)
    assert len(ids) == ROWS
    with work(platform.database) as done:
        assert late.write(lambda on: purge.begin(on, ids[0], Parts("", (), ()), at - grace, at))
    assert max(each.cost for each in done) <= most(platform) // 10


def test_telling_of_the_stuck_passes_over_nobody_twice(trial: Trial, clock: Clock) -> None:
    """A night without workers: all of it is told of in the morning, in short transactions."""
    fill(trial, PRESENT[:1], ROWS, _prepared(trial))
    clock.pass_by(hours=12)
    platform = trial.platform
    with work(platform.database) as done:
        assert anyio.run(sweeps.tell_of_stuck, platform) == ROWS
    looks = sorted((each.cost for each in done if each.text.startswith("SELECT")), reverse=True)
    # once at all of them, and then at each batch alone
    each = 100 if platform.database.is_sqlite else 20
    assert looks[1] <= each * stuck.BATCH
    assert anyio.run(sweeps.tell_of_stuck, platform) == 0
