"""Finding the disk by its label among block devices that are empty, foreign, late or ambiguous."""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path

import pytest

from initramfs import disk
from initramfs.refusal import Refused


def superblock(label: bytes = b"disk-image", magic: int = 0xEF53, ro_compat: int = 0x8000) -> bytes:
    block = bytearray(2048)
    struct.pack_into("<H", block, 1024 + 0x38, magic)
    struct.pack_into("<I", block, 1024 + 0x64, ro_compat)
    block[1024 + 0x78 : 1024 + 0x78 + len(label)] = label
    return bytes(block)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "block").mkdir()
    (tmp_path / "dev").mkdir()
    return tmp_path


def plug(machine: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (machine / "dev" / name).write_bytes(content)
    (machine / "block" / name).mkdir()


def find(machine: Path, wait_seconds: float = 0) -> str:
    return disk.find(str(machine / "block"), str(machine / "dev"), wait_seconds)


def test_by_label_among_others(machine: Path) -> None:
    plug(machine, "vda", superblock(b"data"))
    plug(machine, "vdb", superblock())
    plug(machine, "sr0", b"")
    plug(machine, "loop0", None)
    assert find(machine) == str(machine / "dev" / "vdb")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 2047,
        b"\0" * 4096,
        superblock(b"disk-image2"),
        superblock(b"disk-imag"),
        superblock(magic=0xEF54),
        superblock(ro_compat=0x7FFF),
        superblock()[:1500],
    ],
    ids=[
        "empty",
        "short",
        "zeros",
        "longer-label",
        "shorter-label",
        "no-ext4",
        "no-verity-feature",
        "truncated",
    ],
)
def test_not_ours(machine: Path, content: bytes) -> None:
    plug(machine, "vda", content)
    with pytest.raises(
        Refused, match=r"expected a disk with the label disk-image within 0 s, found only: vda"
    ):
        find(machine)


def test_no_block_device_at_all(machine: Path) -> None:
    (machine / "block").rmdir()
    with pytest.raises(Refused, match="found only: none"):
        find(machine)


def test_two_disks_with_the_label_are_ambiguous(machine: Path) -> None:
    plug(machine, "vda", superblock())
    plug(machine, "vdb", superblock())
    with pytest.raises(Refused, match=r"expected one disk with the label disk-image, found .*vda, .*vdb"):
        find(machine)


def test_a_late_disk_is_waited_for_and_the_wait_is_bounded(machine: Path) -> None:
    late = threading.Timer(0.2, plug, (machine, "vda", superblock()))
    late.start()
    try:
        assert find(machine, 10) == str(machine / "dev" / "vda")
    finally:
        late.join()
    started = time.monotonic()
    (machine / "dev" / "vda").unlink()
    with pytest.raises(Refused, match=r"within 0\.2 s"):
        find(machine, 0.2)
    assert 0.2 <= time.monotonic() - started < 5
