"""The state machine: exactly the reference's transitions, and rows that stay as they were published."""

from __future__ import annotations

from itertools import product

import pytest
from sqlalchemy.orm import Session

from platform_server.errors import Conflict
from platform_server.state_folder import Platform
from platform_server.states import RULES, Status, Transition, move, refusal
from platform_server.tables import Publication
from tests.platform_server.clock import START, Clock
from tests.platform_server.rows import node_platform, publication, verified

LEGAL = {
    ("await_upload", "queued", "awaiting_upload"),
    ("start_verifying", "queued", "verifying"),
    ("start_verifying", "awaiting_upload", "verifying"),
    ("start_verifying", "verifying", "verifying"),
    ("start_verifying", "failed", "verifying"),
    ("mark_published", "verifying", "published"),
    ("mark_failed", "queued", "failed"),
    ("mark_failed", "awaiting_upload", "failed"),
    ("mark_failed", "verifying", "failed"),
    ("retire", "published", "retired"),
    ("retire", "failed", "retired"),
    ("retire", "verifying", "retired"),
    ("purge", "retired", "purged"),
    ("reactivate", "retired", "published"),
}


def test_the_transitions_are_the_references_and_no_others() -> None:
    found = {
        (str(transition), str(source), str(rule.target))
        for transition, rule in RULES.items()
        for source in rule.sources
    }
    assert found == LEGAL


@pytest.mark.parametrize(("transition", "status"), list(product(Transition, Status)))
def test_a_transition_moves_from_its_states_alone(transition: Transition, status: Status) -> None:
    row = Publication(status=status, published_at=START, **verified())
    if (str(transition), str(status)) in {(name, source) for name, source, _ in LEGAL}:
        move(row, transition, START)
        assert row.status is RULES[transition].target
        assert all(getattr(row, column) == START for column in RULES[transition].stamps)
    else:
        with pytest.raises(Conflict, match=f"{transition}, and it is {status}"):
            move(row, transition, START)
        assert row.status is status


def test_a_publication_starts_queued(platform: Platform, clock: Clock) -> None:
    row = platform.database.write_now(lambda on: publication(on, clock(), node_platform(on, clock())))
    assert (row.status, row.cosign_verified, row.published_at) == (Status.QUEUED, False, None)


def test_what_is_not_verified_is_not_published() -> None:
    row = Publication(status=Status.VERIFYING, cosign_verified=False)
    with pytest.raises(Conflict, match="not verified"):
        move(row, Transition.MARK_PUBLISHED, START)


def test_publishing_stamps_when_it_was_verified_and_published() -> None:
    row = Publication(status=Status.VERIFYING, **verified())
    move(row, Transition.MARK_PUBLISHED, START)
    assert (row.verified_at, row.published_at) == (START, START)


def test_what_was_never_published_or_is_being_deleted_is_not_reactivated() -> None:
    never = Publication(status=Status.RETIRED, published_at=None)
    going = Publication(status=Status.RETIRED, published_at=START, purge_started_at=START)
    assert refusal(never, Transition.REACTIVATE) == "it was never published"
    assert refusal(going, Transition.REACTIVATE) == "its image is being deleted"


def _published(session: Session, clock: Clock) -> Publication:
    row = publication(session, clock(), node_platform(session, clock()), **verified())
    for transition in (Transition.START_VERIFYING, Transition.MARK_PUBLISHED):
        move(row, transition, clock())
        session.flush()
    return row


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("oci_digest", f"sha256:{9:064x}"),
        ("sha256", f"{9:064x}"),
        ("oci_ref", "registry.example/other:1"),
        ("git_sha", "f" * 40),
        ("cosign_verified", False),
        ("error_message", "none"),
        ("published_at", START.replace(year=2027)),
    ],
)
def test_a_published_row_can_not_be_changed(
    platform: Platform, clock: Clock, column: str, value: object
) -> None:
    row = platform.database.write_now(lambda on: _published(on, clock))

    def change(session: Session) -> None:
        found = session.get_one(Publication, row.id)
        setattr(found, column, value)

    with pytest.raises(AssertionError, match=f"{column} can't change"):
        platform.database.write_now(change)
    after = platform.database.read_now(lambda on: on.get_one(Publication, row.id))
    assert getattr(after, column) == getattr(row, column)


def test_a_status_that_no_transition_leads_to_is_not_written(platform: Platform, clock: Clock) -> None:
    row = platform.database.write_now(lambda on: publication(on, clock(), node_platform(on, clock())))

    def skip_verification(session: Session) -> None:
        session.get_one(Publication, row.id).status = Status.PUBLISHED

    with pytest.raises(AssertionError, match="no transition leads from queued to published"):
        platform.database.write_now(skip_verification)
