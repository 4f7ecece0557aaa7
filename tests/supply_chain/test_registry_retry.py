"""Waiting: bounded, jittered, and as long as the registry asks."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supply_chain.registry import Policy
from supply_chain.registry.retry import Attempts, retry_after
from tests.waits import Waits

NOON = 1_800_000_000.0
DATE = "Fri, 15 Jan 2027 08:00:00 GMT"
LATER = "Fri, 15 Jan 2027 08:00:30 GMT"


@pytest.mark.parametrize(
    ("headers", "now", "seconds"),
    [
        ({"retry-after": "7"}, NOON, 7.0),
        ({"retry-after": " 0 "}, NOON, 0.0),
        ({"retry-after": LATER}, NOON, 30.0),
        ({"retry-after": DATE}, NOON + 100, 0.0),
        # a clock that is off by an hour, either way
        ({"retry-after": LATER, "date": DATE}, NOON - 3600, 30.0),
        ({"retry-after": LATER, "date": DATE}, NOON + 3600, 30.0),
        ({"retry-after": LATER, "date": "yesterday"}, NOON, 30.0),
        ({}, NOON, None),
        ({"retry-after": ""}, NOON, None),
        ({"retry-after": "soon"}, NOON, None),
        ({"retry-after": "-5"}, NOON, None),
        ({"retry-after": "1.5"}, NOON, None),
        ({"retry-after": "٣"}, NOON, None),
        ({"retry-after": "9" * 400}, NOON, 999_999_999.0),
    ],
)
def test_retry_after(headers: dict[str, str], now: float, seconds: float | None) -> None:
    assert retry_after(headers, now) == seconds


@given(st.dictionaries(st.sampled_from(["retry-after", "date"]), st.text(max_size=40)))
def test_any_header_is_a_wait_or_nothing(headers: dict[str, str]) -> None:
    found = retry_after(headers, NOON)
    assert found is None or found >= 0


def _spend(policy: Policy, headers: dict[str, str], most: int = 1000) -> int:
    async def run() -> int:
        attempts = Attempts(policy)
        count = 1
        while count < most and await attempts.again(headers):
            count += 1
        return count

    return anyio.run(run)


def test_attempts_and_waits_are_bounded(policy: Policy, waits: Waits) -> None:
    policy = replace(policy, attempts=8, first=1.0, longest=5.0)
    assert _spend(policy, {}) == 8
    assert waits.slept == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0]


@given(st.floats(0, 1), st.integers(0, 200))
def test_jitter_only_shortens_and_patience_ends(jitter: float, asked: int) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    policy = Policy(attempts=100, patience=100.0, sleep=sleep, jitter=lambda: jitter)
    _spend(policy, {"retry-after": str(asked)})
    assert sum(slept) <= 100.0
    assert all(one >= asked for one in slept)
    assert all(one <= max(asked, policy.longest) for one in slept)
