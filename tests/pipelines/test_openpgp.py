"""OpenPGP packets: lengths of every form, issuers, and malformed input."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.archive import KEYRING, PINNED
from pipelines.openpgp import Malformed, fingerprints, issuers, packets
from tests.pipelines.local_archive import Key


def _old(tag: int, body: bytes) -> bytes:
    for code, octets in enumerate((1, 2, 4)):
        if len(body) < 256**octets:
            return bytes([0x80 | tag << 2 | code]) + len(body).to_bytes(octets, "big") + body
    raise AssertionError("too long for a test")


def _new(tag: int, body: bytes) -> bytes:
    length = len(body)
    if length < 192:
        coded = bytes([length])
    elif length < 8384:
        coded = bytes([(length - 192 >> 8) + 192, length - 192 & 0xFF])
    else:
        coded = b"\xff" + length.to_bytes(4, "big")
    return bytes([0xC0 | tag]) + coded + body


BODIES = st.one_of(st.binary(max_size=300), st.sampled_from([191, 192, 8383, 8384, 65535, 65536]).map(bytes))


@given(st.lists(st.tuples(st.integers(1, 15), BODIES, st.booleans()), max_size=4))
def test_packets_are_read_as_they_were_written(written: list[tuple[int, bytes, bool]]) -> None:
    data = b"".join((_new if new else _old)(tag, body) for tag, body, new in written)
    assert list(packets(data)) == [(tag, body) for tag, body, _ in written]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_malformed(data: bytes) -> None:
    for read in (fingerprints, issuers, lambda given: list(packets(given))):
        with contextlib.suppress(Malformed):
            read(data)


@given(st.binary(max_size=60))
def test_any_signature_body_is_read_or_malformed(body: bytes) -> None:
    armored = base64.encodebytes(_new(2, b"\x04\x01\x16\x0a" + body))
    text = b"-----BEGIN PGP SIGNATURE-----\n\n" + armored + b"-----END PGP SIGNATURE-----\n"
    with contextlib.suppress(Malformed):
        assert all(len(one) % 2 == 0 for one in issuers(text))


def test_the_keyrings_fingerprints_are_those_that_debian_publishes() -> None:
    assert fingerprints(KEYRING.read_bytes()) == PINNED


def test_a_clear_signature_names_its_issuer() -> None:
    key = Key("someone")
    assert issuers(key.clearsign("text\n", created=1_700_000_000)) == (key.fingerprint,)
    assert issuers(b"no signature at all") == ()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x00", "0x00, not a packet header"),
        (b"\x9b\x00", "indeterminate length"),
        (b"\xc2\xe1\x00", "partial length"),
        (b"\xc2\xff\x00", "ends inside a packet's length"),
        (b"\xc2\x05abc", "packet of type 2 has 3 of its 5 bytes"),
    ],
)
def test_a_malformed_packet_says_what_is_wrong(data: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        list(packets(data))


def test_a_key_of_another_version_is_malformed() -> None:
    with pytest.raises(Malformed, match="version 6, expected version 4"):
        fingerprints(_new(6, b"\x06key"))


def test_a_private_key_is_no_public_one() -> None:
    assert fingerprints(_new(5, b"\x04secret")) == ()
