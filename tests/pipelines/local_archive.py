"""A Debian archive in a folder, signed with a key made for the test: what apt verifies is real.

The signer is RFC 8032's Ed25519 in OpenPGP's clothes (RFC 9580, EdDSALegacy, version 4): no gpg is needed.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_BASE_Y = 4 * pow(5, -1, _P) % _P
_ED25519_OID = bytes.fromhex("092b06010401da470f01")
_CREATED = 1_600_000_000

Point = tuple[int, int, int, int]


def _base_x() -> int:
    square = (_BASE_Y * _BASE_Y - 1) * pow(_D * _BASE_Y * _BASE_Y + 1, -1, _P) % _P
    root = pow(square, (_P + 3) // 8, _P)
    if (root * root - square) % _P:
        root = root * pow(2, (_P - 1) // 4, _P) % _P
    return root if root % 2 == 0 else _P - root


_BASE: Point = (_base_x(), _BASE_Y, 1, _base_x() * _BASE_Y % _P)


def _add(p: Point, q: Point) -> Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % _P, g * h % _P, f * g % _P, e * h % _P)


def _encoded(scalar: int) -> bytes:
    total, addend = (0, 1, 1, 0), _BASE
    while scalar:
        if scalar & 1:
            total = _add(total, addend)
        addend = _add(addend, addend)
        scalar >>= 1
    inverse = pow(total[2], -1, _P)
    return (total[1] * inverse % _P | (total[0] * inverse % _P & 1) << 255).to_bytes(32, "little")


def _packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4, "big") + body


def _mpi(number: bytes) -> bytes:
    bits = int.from_bytes(number, "big").bit_length()
    return bits.to_bytes(2, "big") + number.lstrip(b"\0")


class Key:
    """An Ed25519 signing key made from a seed word."""

    def __init__(self, seed: str) -> None:
        digest = hashlib.sha512(hashlib.sha256(seed.encode()).digest()).digest()
        self._scalar = int.from_bytes(digest[:32], "little") & (1 << 254) - 8 | 1 << 254
        self._prefix = digest[32:]
        self._public = _encoded(self._scalar)
        self._body = (
            b"\x04" + _CREATED.to_bytes(4, "big") + b"\x16" + _ED25519_OID + _mpi(b"\x40" + self._public)
        )
        hashed = b"\x99" + len(self._body).to_bytes(2, "big") + self._body
        self._hashed_key = hashed
        self.fingerprint = hashlib.sha1(hashed, usedforsecurity=False).hexdigest().upper()
        self._name = f"{seed} <{seed}@example.org>".encode()

    def _raw(self, message: bytes) -> tuple[bytes, bytes]:
        nonce = int.from_bytes(hashlib.sha512(self._prefix + message).digest(), "little") % _ORDER
        point = _encoded(nonce)
        challenge = (
            int.from_bytes(hashlib.sha512(point + self._public + message).digest(), "little") % _ORDER
        )
        return point, ((nonce + challenge * self._scalar) % _ORDER).to_bytes(32, "little")

    def _signature(self, kind: int, content: bytes, extra: bytes = b"", created: int = _CREATED) -> bytes:
        fingerprint = bytes.fromhex(self.fingerprint)
        hashed = b"\x05\x02" + created.to_bytes(4, "big") + b"\x16\x21\x04" + fingerprint + extra
        head = bytes([4, kind, 22, 10]) + len(hashed).to_bytes(2, "big") + hashed
        digest = hashlib.sha512(content + head + b"\x04\xff" + len(head).to_bytes(4, "big")).digest()
        unhashed = b"\x09\x10" + fingerprint[-8:]
        r, s = self._raw(digest)
        return _packet(
            2, head + len(unhashed).to_bytes(2, "big") + unhashed + digest[:2] + _mpi(r) + _mpi(s)
        )

    def keyring(self) -> bytes:
        """The public key with its self-signed name, as a binary keyring."""
        named = self._hashed_key + b"\xb4" + len(self._name).to_bytes(4, "big") + self._name
        # May certify and sign; SHA-512 preferred.
        certified = self._signature(0x13, named, extra=b"\x02\x1b\x03" + b"\x02\x15\x0a")
        return _packet(6, self._body) + _packet(13, self._name) + certified

    def clearsign(self, text: str, created: int) -> bytes:
        """`text` with a cleartext signature (RFC 9580, 7)."""
        assert text.endswith("\n")
        signature = self._signature(1, text[:-1].replace("\n", "\r\n").encode(), created=created)
        return (
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n"
            f"{text}-----BEGIN PGP SIGNATURE-----\n\n{_armored(signature)}-----END PGP SIGNATURE-----\n"
        ).encode()


def _armored(data: bytes) -> str:
    """Base64 lines and the CRC-24 line, which gpgv before 2.4 misses when it is not there."""
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc = crc << 1 ^ (0x1864CFB if crc & 0x800000 else 0)
    check = base64.b64encode((crc & 0xFFFFFF).to_bytes(3, "big")).decode()
    return base64.encodebytes(data).decode() + f"={check}\n"


@dataclass
class LocalArchive:
    """An archive of index entries below `root`; `publish` writes and signs a suite."""

    root: Path
    key: Key
    suites: dict[str, dict[tuple[str, str], str]] = field(default_factory=dict)

    def add(
        self, name: str, version: str, *, suite: str = "trixie", arch: str = "amd64", **fields: str
    ) -> None:
        """Put one package into a suite's index. Fields are written with '_' for '-'."""
        pool = "pool/updates/main" if suite.endswith("-security") else "pool/main"
        content = f"{name} {version} {arch}".encode()
        stanza = {
            "Package": name,
            "Version": version,
            "Architecture": arch,
            "Maintainer": "Nobody <nobody@example.org>",
            "Description": f"{name} of a test",
            "Filename": f"{pool}/{name[0]}/{name}/{name}_{version.partition(':')[2] or version}_{arch}.deb",
            "Size": str(len(content)),
            "SHA256": hashlib.sha256(content).hexdigest(),
        }
        stanza |= {key.replace("_", "-"): value for key, value in fields.items()}
        text = "".join(f"{key}: {value}\n" for key, value in stanza.items())
        self.suites.setdefault(suite, {})[(name, version)] = text

    def remove(self, name: str, version: str, suite: str = "trixie") -> None:
        """Take a package out of a suite's index again."""
        del self.suites[suite][(name, version)]

    def index(self, suite: str) -> Path:
        """Where the suite's Packages file is."""
        return self.root / "dists" / suite / "main/binary-amd64/Packages"

    def publish(self, *suites: str, valid_days: float | None = None, key: Key | None = None) -> None:
        """Write the suites (all of them by default), valid for so many days from now, or for ever."""
        now = datetime.now(UTC) - timedelta(days=30)
        for suite in suites or ("trixie", "trixie-updates", "trixie-security"):
            packages = "\n".join(self.suites.get(suite, {}).values()).encode()
            index = self.index(suite)
            index.parent.mkdir(parents=True, exist_ok=True)
            index.write_bytes(packages)
            lines = [
                "Origin: Debian",
                "Label: Debian",
                f"Suite: {suite}",
                f"Codename: {suite}",
                f"Date: {_rfc(now)}",
            ]
            if valid_days is not None:
                lines.append(f"Valid-Until: {_rfc(datetime.now(UTC) + timedelta(days=valid_days))}")
            lines += ["Architectures: amd64", "Components: main", "SHA256:"]
            lines.append(
                f" {hashlib.sha256(packages).hexdigest()} {len(packages)} main/binary-amd64/Packages"
            )
            signed = (key or self.key).clearsign("\n".join(lines) + "\n", created=int(now.timestamp()))
            (self.root / "dists" / suite / "InRelease").write_bytes(signed)


def _rfc(when: datetime) -> str:
    return when.strftime("%a, %d %b %Y %H:%M:%S UTC")
