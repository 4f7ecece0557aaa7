"""fs-verity: equal to fsverity(1) in digest, tree and descriptor, whatever way the content comes in."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.shared import fsverity
from stages.shared.job import Failure

BLOCK = 4096
# `fsverity digest --compact` (fsverity-utils 1.5) of the first SIZE bytes of `content`. One block holds 128
# hashes: the sizes are the borders of 0, 1, 2 and 3 levels.
VECTORS = {
    0: "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95",
    1: "b803429503d95915829b29fdbc8bbad142f3abfd11b1cadf5526582e685c0551",
    4095: "5f4953aad672b0188023d6cd6fbce9d09508eb7dad165b6298ce0086bc1e72db",
    4096: "13e9b8848ae484a36acb3f3cac0ceb2f7601e96633d15c92f9bd3dd44e492157",
    4097: "b0d074abef4d544404facfab6ba242f6a8ccbde90f1325cd286f3c8aa8d0f8aa",
    8192: "e48d50c56c4f0178a98a035cb91d66be328eeff78bbddaa35c5ec4cc0d8340c0",
    524287: "9735c4bb231d3222d1e5e23a4004d8b59dd33395d7de390530e15c2572000b47",
    524288: "d82861203d50ae9b60948504a704f35f5118bd229aeb1a22d6dae47b1767c4c4",
    524289: "4dc6905041c9c4ee73e13b53f63f5d289c46da359b664a965ead7f8cc4d799d4",
    67108864: "196650e8bd05f8516c0ede56deeb4d1ff2be9809dc2d827261db4a7773957567",
    67108865: "acba6554fbff4e8b2fc0361086b9e8ed6afbbd3196ade159c0f3e2bf9ecb2ed1",
}


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize(("size", "expected"), VECTORS.items())
def test_digests_are_those_of_fsverity(size: int, expected: str, tmp_path: Path) -> None:
    data = content(size)
    assert fsverity.digest(data) == expected
    assert fsverity.digest(io.BytesIO(data)) == expected
    path = tmp_path / "file"
    path.write_bytes(data)
    assert fsverity.digests(path, [(0, size)], workers=2) == [expected]


@pytest.mark.skipif(shutil.which("fsverity") is None, reason="fsverity(1) is not installed")
@pytest.mark.parametrize(
    "size", [0, 1, BLOCK, BLOCK + 1, 128 * BLOCK, 128 * BLOCK + 1, 130 * 128 * BLOCK + 7]
)
def test_trees_and_descriptors_are_those_of_fsverity(size: int, tmp_path: Path) -> None:
    path, tree, descriptor = tmp_path / "file", tmp_path / "tree", tmp_path / "descriptor"
    path.write_bytes(content(size))
    command = [
        "fsverity",
        "digest",
        "--compact",
        f"--out-merkle-tree={tree}",
        f"--out-descriptor={descriptor}",
    ]
    printed = subprocess.run([*command, path], check=True, capture_output=True, text=True).stdout.strip()
    found = fsverity.merkle(content(size))
    assert found == fsverity.Merkle(tree.read_bytes(), descriptor.read_bytes(), printed)


def test_the_top_level_is_stored_first() -> None:
    data = content(129 * BLOCK)
    found = fsverity.merkle(data)
    leaves = b"".join(hashlib.sha256(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK))
    lower = leaves.ljust(2 * BLOCK, b"\0")
    upper = b"".join(hashlib.sha256(lower[at : at + BLOCK]).digest() for at in (0, BLOCK)).ljust(
        BLOCK, b"\0"
    )
    assert found.tree == upper + lower
    assert found.descriptor[16:48] == hashlib.sha256(upper).digest()


def test_a_descriptor_states_its_parameters() -> None:
    descriptor = fsverity.merkle(b"x" * 5000).descriptor
    assert len(descriptor) == 256
    assert struct.unpack_from("<BBBBIQ", descriptor) == (1, 1, 12, 0, 0, 5000)
    assert descriptor[48:] == bytes(208)


@given(st.lists(st.integers(0, 9000), max_size=12))
def test_pieces_of_any_length_add_up(lengths: list[int]) -> None:
    data = content(sum(lengths))
    hasher = fsverity.Hasher()
    at = 0
    for length in lengths:
        hasher.update(memoryview(data)[at : at + length])
        at += length
    assert hasher.merkle() == fsverity.merkle(data)


@given(ranges=st.lists(st.tuples(st.integers(0, 50_000), st.integers(0, 50_000)), max_size=8))
def test_ranges_of_a_file_are_measured_alone(ranges: list[tuple[int, int]]) -> None:
    whole = content(100_000)
    with tempfile.NamedTemporaryFile() as file:
        file.write(whole)
        file.flush()
        found = fsverity.digests(Path(file.name), ranges, workers=1)
    assert found == [fsverity.digest(whole[offset : offset + size]) for offset, size in ranges]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_same(workers: int, tmp_path: Path) -> None:
    sizes = [0, 70, 5000, 9 << 20, 1, 4 << 20, (4 << 20) + 1, 300_000, 64]
    data = content(sum(sizes))
    path = tmp_path / "file"
    path.write_bytes(data)
    ranges, at = [], 0
    for size in sizes:
        ranges.append((at, size))
        at += size
    expected = [fsverity.digest(data[at : at + size]) for at, size in ranges]
    assert fsverity.digests(path, ranges, workers) == expected


def test_nothing_of_an_empty_file_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    assert fsverity.digests(path, [(0, 0)]) == [VECTORS[0]]
    assert fsverity.digests(path, []) == []


def test_a_truncated_stream_is_refused() -> None:
    with pytest.raises(Failure, match="expected 10 bytes to measure, found 4"):
        fsverity.digest(io.BytesIO(b"four"), 10)
    with pytest.raises(Failure, match="expected 10 bytes to measure, found 4"):
        fsverity.digest(b"four", 10)


def test_a_longer_stream_is_read_to_its_size_only() -> None:
    stream = io.BytesIO(content(10_000))
    assert fsverity.digest(stream, 4096) == VECTORS[4096]
    assert stream.tell() == 4096


@pytest.mark.parametrize("outside", [(0, 11), (11, 0), (-1, 5), (5, -1), (1 << 62, 1)])
def test_a_range_outside_the_file_is_refused(outside: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with pytest.raises(Failure, match="is not inside its 10 bytes"):
        fsverity.digests(path, [outside])


def test_a_worker_that_dies_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(20 << 20))

    def killed(view: memoryview) -> bytes:
        raise SystemExit(7)

    monkeypatch.setattr(fsverity, "_leaves", killed)
    with pytest.raises(Failure, match="ended with exit code 7"):
        fsverity.digests(path, [(0, 20 << 20)], workers=2)
