"""The digest on the command line is the trust anchor: one, well formed, or no boot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initramfs.cmdline import root_digest
from initramfs.refusal import Refused

DIGEST = "0123456789abcdef" * 4


def test_among_other_words() -> None:
    assert root_digest(f"console=ttyS0 quiet composefs={DIGEST} ro\n") == DIGEST


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("console=ttyS0", "found none"),
        ("", "found none"),
        (f"composefs={DIGEST} composefs={DIGEST}", "found 2"),
        (f"composefs={DIGEST} composefs={'f' * 64}", "found 2"),
        (f"composefs={DIGEST[:-1]}", DIGEST[:-1]),
        (f"composefs={DIGEST}0", f"{DIGEST}0"),
        (f"composefs={DIGEST.upper()}", DIGEST.upper()),
        ("composefs=" + "٣" * 64, "٣"),
        ("composefs=", "found composefs="),
        (f"composefs=sha256:{DIGEST}", "found composefs=sha256:"),
        ("composefs=../../" + "a" * 58, "found composefs=../../"),
        (f'"composefs={DIGEST}"', "found none"),
        (f"rootcomposefs={DIGEST}", "found none"),
    ],
    ids=[
        "missing", "empty-line", "twice-the-same", "twice-different", "too-short", "too-long", "upper-case",
        "other-digits", "empty", "with-algorithm", "path-escape", "quoted", "other-word",
    ],
)  # fmt: skip
def test_refused(line: str, found: str) -> None:
    with pytest.raises(Refused) as refused:
        root_digest(line)
    assert "64 hex digits" in str(refused.value)
    assert found in str(refused.value)


@given(st.text())
def test_never_anything_but_a_digest_or_a_refusal(line: str) -> None:
    try:
        digest = root_digest(line)
    except Refused:
        return
    assert len(digest) == 64
    assert set(digest) <= set("0123456789abcdef")
    assert [f"composefs={digest}"] == [word for word in line.split() if word.startswith("composefs=")]
