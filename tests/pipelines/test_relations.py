"""Package relations and Debian's version order, against the examples of the manual pages and dpkg itself."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.relations import Relation, clauses, compare

ORDERED = [
    *(
        "0~~",
        "0~~a",
        "0~",
        "0",
        "0+b1",
        "1.0~beta1~svc1",
        "1.0~beta1",
        "1.0",
        "1.0-0.1",
        "1.0-1~deb13u1",
        "1.0-1",
    ),
    *(
        "1.0-1+b1",
        "1.0-1+deb13u1",
        "1.0-2",
        "1.0-10",
        "1.0a-1",
        "1.0+dfsg-1",
        "1.0.1-1",
        "1.2",
        "1.10",
        "2025a",
    ),
    "1:0.1",
]
VERSIONS = st.from_regex(r"([0-9]:)?[0-9][0-9a-z.+~]{0,5}(-[0-9a-z.+~]{1,4})?", fullmatch=True)


def test_versions_are_in_debians_order() -> None:
    for index, version in enumerate(ORDERED):
        for other_index, other in enumerate(ORDERED):
            difference = compare(version, other)
            assert (difference > 0) - (difference < 0) == (index > other_index) - (index < other_index), (
                version,
                other,
            )


@pytest.mark.parametrize(
    ("left", "right"), [("1.0", "0:1.0"), ("1.0", "1.0-0"), ("1.00", "1.0"), ("1.0-01", "1.0-1")]
)
def test_versions_that_are_written_differently_can_be_equal(left: str, right: str) -> None:
    assert compare(left, right) == 0


@given(VERSIONS, VERSIONS, VERSIONS)
def test_the_order_is_an_order(a: str, b: str, c: str) -> None:
    assert compare(a, a) == 0
    assert compare(a, b) == -compare(b, a)
    if compare(a, b) <= 0 and compare(b, c) <= 0:
        assert compare(a, c) <= 0


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is not installed")
def test_the_order_is_dpkgs() -> None:
    for left, right in zip(ORDERED, [*ORDERED[3:], *ORDERED[:3]], strict=True):
        for operator, holds in (("lt", compare(left, right) < 0), ("eq", compare(left, right) == 0)):
            done = subprocess.run(["dpkg", "--compare-versions", left, operator, right], check=False)
            assert (done.returncode == 0) is holds, (left, operator, right)


def test_clauses_keep_alternatives_versions_and_order() -> None:
    field = (
        "libc6 (>= 2.38), media-types | mime-support, perl:any, libfoo (<<2.0) [linux-any], a-b+c (= 1:2-3)"
    )
    assert clauses(field) == (
        (Relation("libc6", ">=", "2.38"),),
        (Relation("media-types"), Relation("mime-support")),
        (Relation("perl"),),
        (Relation("libfoo", "<<", "2.0"),),
        (Relation("a-b+c", "=", "1:2-3"),),
    )
    assert clauses("") == ()


@pytest.mark.parametrize(
    ("operator", "allowed"),
    [("<<", "1.0"), ("<=", "1.0 1.1"), ("=", "1.1"), (">=", "1.1 1.2"), (">>", "1.2"), ("", "1.0 1.1 1.2")],
)
def test_a_relation_allows_what_its_operator_says(operator: str, allowed: str) -> None:
    relation = Relation("x", operator, "1.1" if operator else "")
    assert [version for version in ("1.0", "1.1", "1.2") if relation.allows(version)] == allowed.split()
