"""A failed publication is verified once more, on demand."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from platform_server.permissions import Caller
from platform_server.reverify import process
from platform_server.settings import Registries, Settings
from platform_server.state_folder import Platform
from platform_server.states import Transition, move
from platform_server.tables import Job, NodePlatform, Publication
from tests.platform_server import rows
from tests.platform_server.api import Api
from tests.platform_server.clock import Clock
from tests.platform_server.verifying import Trial

PROCESS = "/worker_api/disk_image_publications/process"


@pytest.fixture
def settings() -> Settings:
    return Settings(workers=0, registries=Registries(plain_http=True))


@pytest.fixture
def make(platform: Platform, platform_id: str, clock: Clock) -> Any:
    """A publication after these transitions; its id."""

    def run(*transitions: Transition, **fields: Any) -> str:
        def work(on: Any) -> str:
            node_platform = on.get_one(NodePlatform, UUID(platform_id))
            row = rows.publication(on, clock(), node_platform, **fields)
            for transition in transitions:
                move(row, transition, clock())
                on.flush()
            return str(row.id)

        made: str = platform.database.write_now(work)
        return made

    return run


def _has_job(platform: Platform, made: str) -> bool:
    return platform.database.read_now(lambda on: on.get(Job, UUID(made)) is not None)


def test_a_failed_one_is_queued_again(api: Api, make: Any, platform: Platform) -> None:
    made = make(Transition.MARK_FAILED)
    for _ in range(2):
        done = api.post(PROCESS, {"publication_id": made})
        assert (done["publication_status"], done["idempotent_hit"]) == ("verifying", False)
    assert _has_job(platform, made)


def test_a_published_one_stays_as_it_is(api: Api, make: Any, platform: Platform) -> None:
    made = make(Transition.START_VERIFYING, Transition.MARK_PUBLISHED, **rows.verified())
    done = api.post(PROCESS, {"publication_id": made})
    assert (done["publication_status"], done["idempotent_hit"]) == ("published", True)
    assert not _has_job(platform, made)


@pytest.mark.parametrize(
    "transitions",
    [
        (Transition.AWAIT_UPLOAD,),
        (Transition.START_VERIFYING, Transition.MARK_PUBLISHED, Transition.RETIRE),
        (Transition.START_VERIFYING, Transition.MARK_PUBLISHED, Transition.RETIRE, Transition.PURGE),
    ],
    ids=["awaiting_upload", "retired", "purged"],
)
def test_what_can_not_be_verified_is_refused(
    api: Api, make: Any, platform: Platform, transitions: tuple[Transition, ...]
) -> None:
    made = make(*transitions, **rows.verified())
    assert "expected one that failed" in api.error(409, "POST", PROCESS, json={"publication_id": made})
    assert not _has_job(platform, made)


def test_a_duplicate_is_refused(api: Api, make: Any) -> None:
    first = make(Transition.START_VERIFYING, Transition.MARK_PUBLISHED, **rows.verified())
    made = make(Transition.MARK_FAILED, duplicate_of_id=UUID(first))
    assert "a duplicate" in api.error(409, "POST", PROCESS, json={"publication_id": made})


def test_a_commit_is_verified_in_one_publication_at_a_time(api: Api, make: Any) -> None:
    made = make(Transition.MARK_FAILED, git_sha="1f" * 20)
    make(git_sha="1f" * 20)
    assert "another publication" in api.error(409, "POST", PROCESS, json={"publication_id": made})


def test_unknown_ones_and_other_accounts_are_404(api: Api, other: Api, make: Any) -> None:
    made = make(Transition.MARK_FAILED)
    api.error(404, "POST", PROCESS, json={"publication_id": str(UUID(int=7))})
    other.error(404, "POST", PROCESS, json={"publication_id": made})


def test_a_worker_without_a_token_is_401(api: Api, make: Any) -> None:
    api.with_token(None).error(401, "POST", PROCESS, json={"publication_id": make()})


def test_what_failed_for_want_of_a_policy_is_published_once_there_is_one(trial: Trial, clock: Clock) -> None:
    trial.images.push()
    policy = trial.platform_row().cosign_identity_regexp
    trial.change(cosign_identity_regexp=None)
    trial.refused("no_trust_policy")
    trial.change(cosign_identity_regexp=policy)
    (failed,) = trial.read(lambda on: list(on.query(Publication)))
    caller = Caller(failed.account_id, "admin", ["*"])
    trial.write(lambda on: process(on, caller, failed.id, clock()))
    assert trial.work()
    row = trial.row(failed.id)
    assert (row.status, row.error_message) == ("published", None)
