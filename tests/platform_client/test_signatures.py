"""Both signature forms: against others' code and vectors, and that nothing else passes."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as ReferenceWebhook

from platform_client.signatures import (
    DELIVERY_ID,
    new_delivery_id,
    powernode_signature,
    signed_headers,
    standard_signature,
)
from tests.platform_client.webhook_server import verified

_SECRETS = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cs"]), min_size=1
)
_IDS = st.from_regex(DELIVERY_ID, fullmatch=True)
# The library reads what it verified as JSON.
_BODIES = st.dictionaries(st.text(), st.text() | st.integers()).map(lambda body: json.dumps(body).encode())


def test_the_vector_of_the_standard_webhooks_libraries() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = standard_signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_vector_of_rfc_4231() -> None:
    """Test case 2: the key is a text, as ours is."""
    assert powernode_signature(b"Jefe", b"what do ya want for nothing?") == (
        "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@given(secret=_SECRETS, delivery=_IDS, body=_BODIES)
def test_the_reference_library_and_a_verifier_by_hand_take_what_we_sign(
    secret: str, delivery: str, body: bytes
) -> None:
    assert verified(secret, signed_headers(secret.encode(), delivery, int(time.time()), body), body)


@given(secret=_SECRETS, delivery=_IDS, body=_BODIES)
def test_we_sign_as_the_reference_library_does(secret: str, delivery: str, body: bytes) -> None:
    now = datetime.fromtimestamp(1_700_000_000, UTC)
    theirs = ReferenceWebhook(base64.b64encode(secret.encode()).decode()).sign(delivery, now, body.decode())
    assert standard_signature(secret.encode(), delivery, 1_700_000_000, body) == theirs


@given(
    secret=_SECRETS,
    delivery=_IDS,
    body=st.binary(min_size=1, max_size=200),
    where=st.integers(min_value=0),
    flip=st.integers(min_value=1, max_value=255),
)
def test_any_changed_byte_of_body_or_key_changes_both_signatures(
    secret: str, delivery: str, body: bytes, where: int, flip: int
) -> None:
    key = secret.encode()
    at = where % len(body)
    other_body = body[:at] + bytes([body[at] ^ flip]) + body[at + 1 :]
    at = where % len(key)
    other_key = key[:at] + bytes([key[at] ^ flip]) + key[at + 1 :]
    assert powernode_signature(key, body) != powernode_signature(key, other_body)
    assert powernode_signature(key, body) != powernode_signature(other_key, body)
    said = standard_signature(key, delivery, 1_700_000_000, body)
    assert said != standard_signature(key, delivery, 1_700_000_000, other_body)
    assert said != standard_signature(other_key, delivery, 1_700_000_000, body)


@given(delivery=_IDS, other=_IDS, timestamp=st.integers(0, 2**33), later=st.integers(0, 2**33))
def test_id_and_time_are_signed_too(delivery: str, other: str, timestamp: int, later: int) -> None:
    said = standard_signature(b"key", delivery, timestamp, b"{}")
    assert (said == standard_signature(b"key", other, timestamp, b"{}")) == (delivery == other)
    assert (said == standard_signature(b"key", delivery, later, b"{}")) == (timestamp == later)


def test_a_changed_header_or_a_stale_time_is_refused() -> None:
    now = int(time.time())
    headers = signed_headers(b"pndis_secret", "msg_1", now, b"{}")
    assert verified("pndis_secret", headers, b"{}")
    for name, value in headers.items():
        assert not verified(
            "pndis_secret", {**headers, name: value[:-1] + ("0" if value[-1] != "0" else "1")}, b"{}"
        )
        assert not verified(
            "pndis_secret", {other: text for other, text in headers.items() if other != name}, b"{}"
        )
    for old in (now - 301, now + 301):
        assert not verified("pndis_secret", signed_headers(b"pndis_secret", "msg_1", old, b"{}"), b"{}")


def test_every_delivery_has_an_id_of_its_own() -> None:
    ids = {new_delivery_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(DELIVERY_ID.fullmatch(one) for one in ids)
