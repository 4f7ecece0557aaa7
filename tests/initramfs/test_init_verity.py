"""Reading the kernel's answer to FS_IOC_MEASURE_VERITY: only sha256 and only the expected digest will do."""

from __future__ import annotations

import errno
import fcntl
import struct
from pathlib import Path

import pytest

from initramfs import verity
from initramfs.refusal import Refused

DIGEST = bytes(range(32))


def kernel_says(monkeypatch: pytest.MonkeyPatch, algorithm: int, digest: bytes) -> None:
    def ioctl(fd: int, request: int, buffer: bytearray, mutate: bool) -> int:
        assert request == (3 << 30 | 4 << 16 | ord("f") << 8 | 134)
        assert struct.unpack_from("=HH", buffer) == (0, 64), "the kernel is told how much room there is"
        struct.pack_into("=HH", buffer, 0, algorithm, len(digest))
        buffer[4 : 4 + len(digest)] = digest
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)


def test_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_says(monkeypatch, 1, DIGEST)
    verity.require(3, DIGEST.hex())


@pytest.mark.parametrize(
    ("algorithm", "digest", "found"),
    [
        (1, DIGEST[::-1], f"found sha256:{DIGEST[::-1].hex()}"),
        (1, b"", "found sha256:"),
        (2, DIGEST, f"found sha512:{DIGEST.hex()}"),
        (2, DIGEST * 2, "found sha512:"),
        (9, DIGEST, "found algorithm 9:"),
    ],
    ids=["another-image", "empty-digest", "sha512-with-the-same-bytes", "sha512", "unknown-algorithm"],
)
def test_refused(monkeypatch: pytest.MonkeyPatch, algorithm: int, digest: bytes, found: str) -> None:
    kernel_says(monkeypatch, algorithm, digest)
    with pytest.raises(Refused) as refused:
        verity.require(3, DIGEST.hex())
    assert f"expected sha256:{DIGEST.hex()}" in str(refused.value)
    assert found in str(refused.value)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENODATA, "a file without it"),
        (errno.ENOTTY, "can't be measured"),
        (errno.EIO, "can't be measured"),
    ],
    ids=["no-verity-on-the-file", "no-verity-in-the-kernel", "unreadable"],
)
def test_the_kernel_can_not_say(monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    def ioctl(*_: object) -> int:
        raise OSError(number, "injected")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with pytest.raises(Refused, match=said):
        verity.require(3, DIGEST.hex())


def test_a_real_file_without_verity_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.cfs"
    path.write_bytes(b"x" * 5000)
    with path.open("rb") as file, pytest.raises(Refused):
        verity.require(file.fileno(), "0" * 64)
