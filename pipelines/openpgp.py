"""OpenPGP packets (RFC 9580) as far as naming keys goes: a keyring's fingerprints, a signature's issuers.

Nothing is verified here; apt verifies. This says which keys a keyring file really holds and which keys
signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator

SIGNATURE, PUBLIC_KEY, PUBLIC_SUBKEY = 2, 6, 14
ISSUER_FINGERPRINT = 33
_ARMOR = re.compile(rb"-----BEGIN PGP SIGNATURE-----\r?\n(.*?)-----END PGP SIGNATURE-----", re.DOTALL)


class Malformed(ValueError):
    """The bytes are not OpenPGP, or use a form that no current keyring has."""


def packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each packet's type and body (RFC 9580, 4.2). Partial and indeterminate lengths are refused."""
    at = 0
    while at < len(data):
        header = data[at]
        if not header & 0x80:
            raise Malformed(f"byte {at} is {header:#04x}, not a packet header")
        at += 1
        if header & 0x40:
            tag = header & 0x3F
            length, at = _new_length(data, at)
        else:
            tag = header >> 2 & 0x0F
            octets = (1, 2, 4, 0)[header & 3]
            if not octets:
                raise Malformed(f"packet of type {tag} has an indeterminate length")
            length, at = _number(data, at, octets)
        body = data[at : at + length]
        if len(body) != length:
            raise Malformed(f"packet of type {tag} has {len(body)} of its {length} bytes")
        yield tag, body
        at += length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    first, at = _number(data, at, 1)
    if first < 192:
        return first, at
    if first < 224:
        second, at = _number(data, at, 1)
        return ((first - 192) << 8) + second + 192, at
    if first == 255:
        return _number(data, at, 4)
    raise Malformed("packet has a partial length")


def _number(data: bytes, at: int, octets: int) -> tuple[int, int]:
    field = data[at : at + octets]
    if len(field) != octets:
        raise Malformed("ends inside a packet's length")
    return int.from_bytes(field, "big"), at + octets


def fingerprints(keyring: bytes) -> tuple[str, ...]:
    """The version 4 fingerprint of every key and subkey as 40 upper-case hex digits (RFC 9580, 5.5.4.2)."""
    found: list[str] = []
    for tag, body in packets(keyring):
        if tag not in (PUBLIC_KEY, PUBLIC_SUBKEY):
            continue
        if not body or body[0] != 4:
            raise Malformed(f"a key of version {body[0] if body else 'none'}, expected version 4")
        # SHA-1 is what the format says; the pinned list that it is compared with was made the same way.
        digest = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
        found.append(digest.hexdigest().upper())
    return tuple(found)


def issuers(clearsigned: bytes) -> tuple[str, ...]:
    """The issuers' fingerprints that the signatures below a cleartext-signed message name, in order."""
    found: list[str] = []
    for armored in _ARMOR.findall(clearsigned):
        for tag, body in packets(_dearmor(armored)):
            if tag == SIGNATURE and body[:1] == b"\x04":
                hashed, at = _number(body, 4, 2)
                area = body[at : at + hashed]
                unhashed, at = _number(body, at + hashed, 2)
                found += (
                    _issuer for _issuer in _issuers(area + body[at : at + unhashed]) if _issuer not in found
                )
    return tuple(found)


def _issuers(subpackets: bytes) -> Iterator[str]:
    at = 0
    while at < len(subpackets):
        length, at = _subpacket_length(subpackets, at)
        body = subpackets[at : at + length]
        if not body or len(body) != length:
            raise Malformed("a signature's subpacket is cut off")
        # The type octet's high bit says that the subpacket is critical.
        if body[0] & 0x7F == ISSUER_FINGERPRINT and body[1:2] == b"\x04":
            yield body[2:].hex().upper()
        at += length


def _subpacket_length(data: bytes, at: int) -> tuple[int, int]:
    first, after = _number(data, at, 1)
    if first < 192:
        return first, after
    if first < 255:
        second, after = _number(data, after, 1)
        return ((first - 192) << 8) + second + 192, after
    return _number(data, after, 4)


def _dearmor(block: bytes) -> bytes:
    """What an armor holds: headers end at the first empty line; the optional CRC line starts with '='."""
    _, found, encoded = block.replace(b"\r\n", b"\n").partition(b"\n\n")
    if not found:
        encoded = block.lstrip(b"\n")
    lines = [line for line in encoded.split(b"\n") if line and not line.startswith(b"=")]
    try:
        return base64.b64decode(b"".join(lines), validate=True)
    except binascii.Error as error:
        raise Malformed(f"the signature's armor is not base64: {error}") from None
