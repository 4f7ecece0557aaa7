"""Both forms of a signature, and everything that is nearly one."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_server.signatures import SignatureHeaders, is_signed
from tests.platform_server.api import standard
from tests.platform_server.clock import START

SECRET = "pndis_secret"
BODY = b'{"a": 1}'
MAC = hmac.new(SECRET.encode(), BODY, hashlib.sha256).digest()
FIVE = timedelta(minutes=5)


def _plain(header: str | None, body: bytes = BODY, *secrets: str) -> bool:
    return is_signed(SignatureHeaders(plain=header), body, secrets or (SECRET,), START, FIVE)


def _standard(**changes: str | None) -> bool:
    made = standard(SECRET, BODY, START, "msg_1")
    headers = {name.replace("-", "_"): value for name, value in made.items()}
    return is_signed(SignatureHeaders(**(headers | changes)), BODY, (SECRET,), START, FIVE)


@pytest.mark.parametrize("header", [f"sha256={MAC.hex()}", MAC.hex(), base64.b64encode(MAC).decode()])
def test_three_plain_forms_hold(header: str) -> None:
    assert _plain(header)
    assert _plain(header, BODY, "pndis_other", SECRET)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "sha256=",
        "0",
        MAC.hex()[:-1],
        MAC.hex()[:32],
        MAC.hex() + "0",
        MAC.hex().upper(),
        f"sha256={MAC.hex()} ",
        f"sha512={MAC.hex()}",
        f"SHA256={MAC.hex()}",
        base64.b64encode(MAC).decode().rstrip("="),
        base64.urlsafe_b64encode(MAC).decode() + "=",
        "é" * 64,
        "\udcff",
    ],
)
def test_truncated_and_malformed_plain_signatures_do_not(header: str | None) -> None:
    assert not _plain(header)


def test_an_empty_body_is_never_signed() -> None:
    assert not _plain(f"sha256={hmac.new(SECRET.encode(), b'', hashlib.sha256).hexdigest()}", b"")


def test_the_whole_secret_with_its_prefix_is_the_key() -> None:
    without = hmac.new(SECRET.removeprefix("pndis_").encode(), BODY, hashlib.sha256).hexdigest()
    assert not _plain(without)


def test_a_standard_signature_holds_also_among_others() -> None:
    good = standard(SECRET, BODY, START, "msg_1")["webhook-signature"]
    assert _standard()
    assert _standard(webhook_signature=f"v1a,nonsense v1,AAAA {good}")


@pytest.mark.parametrize(
    "changes",
    [
        {"webhook_id": None},
        {"webhook_id": ""},
        {"webhook_id": "msg_2"},
        {"webhook_id": "msg_1 "},
        {"webhook_timestamp": None},
        {"webhook_timestamp": ""},
        {"webhook_timestamp": "1e9"},
        {"webhook_timestamp": "-1"},
        {"webhook_timestamp": "nan"},
        {"webhook_timestamp": "9" * 100},
        {"webhook_timestamp": str(int(START.timestamp()) + 1)},
        {"webhook_signature": None},
        {"webhook_signature": ""},
        {"webhook_signature": "v1,"},
        {"webhook_signature": "v2," + base64.b64encode(MAC).decode()},
        {"webhook_signature": "v1," + base64.b64encode(MAC).decode()},
    ],
)
def test_a_standard_signature_with_one_thing_wrong_does_not(changes: dict[str, str | None]) -> None:
    assert not _standard(**changes)


def test_an_id_and_a_body_can_not_trade_places() -> None:
    """The signed text joins its parts with dots: an id with a dot must not open another reading."""
    made = standard(SECRET, b"2.x", START, "msg")
    time = made["webhook-timestamp"]
    moved = SignatureHeaders(None, f"msg.{time}", "2", made["webhook-signature"])
    assert not is_signed(moved, b"x", (SECRET,), START, FIVE)


@given(st.text(max_size=100), st.binary(max_size=50))
def test_no_text_is_a_signature_by_chance(header: str, body: bytes) -> None:
    assert not _plain(header, body)
    signed = SignatureHeaders(None, header, header, header)
    assert not is_signed(signed, body, (SECRET,), START, FIVE)


def test_the_work_does_not_depend_on_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing of the signature check: as many HMACs and comparisons for any header of the same shape."""
    done: list[str] = []
    real, compare = hmac.digest, hmac.compare_digest

    def digest(*arguments: Any) -> bytes:
        done.append("hmac")
        return real(*arguments)

    def compare_digest(*arguments: Any) -> bool:
        done.append("compare")
        return compare(*arguments)

    monkeypatch.setattr(hmac, "digest", digest)
    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    counts = set()
    for header in (MAC.hex(), "0" * 64, "", MAC.hex()[:-1] + "0", "0" + MAC.hex()[1:]):
        done.clear()
        _plain(header, BODY, SECRET, "pndis_other")
        counts.add(tuple(done))
    assert len(counts) == 1
