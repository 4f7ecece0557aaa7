"""Packs: what is written is read back, by zstd as well; what could not have been written is refused."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from stages.shared import fsverity, packs
from stages.shared.job import Failure
from stages.shared.packs import Object, Reader, Stored

FOOTER = 24


def pack_of(*contents: bytes, workers: int | None = None) -> bytes:
    source = b"".join(contents)
    objects, at = [], 0
    for content in contents:
        objects.append(Object(fsverity.digest(content), at, len(content)))
        at += len(content)
    unique = {wanted.digest: wanted for wanted in objects}
    output = io.BytesIO()
    packs.write(source, unique.values(), output, workers)
    return output.getvalue()


def reader(pack: bytes, most: int = 1 << 30) -> Reader:
    return Reader(lambda offset, length: pack[offset : offset + length], len(pack), most=most)


def stored(pack: bytes) -> list[Stored]:
    return list(reader(pack).entries.values())


def with_index(pack: bytes, entries: Sequence[Stored]) -> bytes:
    """The same frames under another index."""
    end = max((entry.offset + entry.length for entry in stored(pack)), default=0)
    return pack[:end] + packs.index(entries)


A, B, C = b"a" * 5000, b"b" * 70, bytes(range(256)) * 300


@given(st.lists(st.binary(max_size=20_000), max_size=8))
def test_what_is_written_is_read_back(contents: list[bytes]) -> None:
    pack = reader(pack_of(*contents))
    assert {digest: pack.fetch(digest) for digest in pack.entries} == {
        fsverity.digest(content): content for content in contents
    }
    assert list(pack.entries) == sorted(pack.entries)


def test_zstd_decompresses_a_whole_pack() -> None:
    pack = pack_of(A, B, C)
    ordered: list[bytes] = sorted([A, B, C], key=lambda content: fsverity.digest(content))
    expected = b"".join(ordered)
    with zstandard.ZstdDecompressor().stream_reader(pack, read_across_frames=True) as stream:
        assert stream.read() == expected
    if shutil.which("zstd") is not None:
        printed = subprocess.run(["zstd", "-dc"], input=pack, capture_output=True, check=True)
        assert printed.stdout == expected


def test_the_byte_layout(snapshot: SnapshotAssertion) -> None:
    """The index byte for byte; frames are zstd's own matter."""
    index = packs.index([Stored("0a" * 32, 0, 12, 5000), Stored("ff" * 32, 12, 300, 1 << 40)])
    assert [index[at : at + 16].hex(" ") for at in range(0, len(index), 16)] == snapshot
    assert struct.unpack_from("<II", index) == (0x184D2A5E, len(index) - 8)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_any_number_of_workers_writes_the_same(workers: int) -> None:
    contents = [hashlib.shake_128(bytes([n])).digest(2000 * n) + b"text " * 900 * n for n in range(40)]
    assert pack_of(*contents, workers=workers) == pack_of(*contents, workers=3)


def test_the_order_of_objects_does_not_matter() -> None:
    assert pack_of(A, B, C) == pack_of(C, B, A)


def test_each_frame_is_one_that_a_fresh_compressor_writes() -> None:
    pack = pack_of(A, B, C)
    for entry in stored(pack):
        frame = pack[entry.offset : entry.offset + entry.length]
        content = reader(pack).fetch(entry.digest)
        assert frame == zstandard.ZstdCompressor(level=packs.LEVEL).compress(content)
        stated = zstandard.get_frame_parameters(frame)
        assert (stated.content_size, stated.has_checksum) == (len(content), False)


def test_large_objects_are_streamed() -> None:
    large = hashlib.shake_128(b"seed").digest(1 << 20) * 17
    pack = pack_of(A, large)
    reads: list[int] = []

    def read(offset: int, length: int) -> bytes:
        reads.append(length)
        return pack[offset : offset + length]

    found = list(Reader(read, len(pack)).stream(fsverity.digest(large)))
    assert b"".join(found) == large
    assert max(map(len, found)) <= 1 << 20 >= max(reads)


def test_opening_makes_two_small_reads() -> None:
    pack = pack_of(A, B, C)
    reads: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return pack[offset : offset + length]

    opened = Reader(read, len(pack))
    assert reads == [(len(pack) - FOOTER, FOOTER), (len(pack) - FOOTER - 8 - 3 * 56, 8 + 3 * 56)]
    reads.clear()
    entry = opened.entries[fsverity.digest(B)]
    opened.fetch(entry.digest)
    assert reads == [(entry.offset, entry.length)]


def test_a_pack_in_a_file(tmp_path: Path) -> None:
    path, source = tmp_path / "pack", tmp_path / "source"
    source.write_bytes(A + C)
    with packs.mapped(source) as content, path.open("wb") as output:
        packs.write(content, [Object(fsverity.digest(C), len(A), len(C))], output)
    with packs.open_pack(path) as opened:
        assert opened.fetch(fsverity.digest(C)) == C
        with pytest.raises(Failure, match="no object"):
            opened.fetch(fsverity.digest(A))


def test_an_empty_pack_is_only_an_index(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with packs.mapped(tmp_path / "empty") as source:
        output = io.BytesIO()
        packs.write(source, [], output)
    assert reader(output.getvalue()).entries == {}


def test_an_object_outside_the_source_is_refused() -> None:
    objects = [Object(fsverity.digest(A), 0, len(A)), Object("ff" * 32, 10, len(A))]
    with pytest.raises(Failure, match="is not inside 5000 bytes"):
        packs.write(A, objects, io.BytesIO())


def _reordered(pack: bytes) -> bytes:
    first, second, *rest = stored(pack)
    return with_index(pack, [replace(second, offset=0), replace(first, offset=second.length), *rest])


def _repeated(pack: bytes) -> bytes:
    first, second, *rest = stored(pack)
    return with_index(pack, [first, replace(second, digest=first.digest), *rest])


def _overlapping(pack: bytes) -> bytes:
    first, second, *rest = stored(pack)
    return with_index(pack, [first, replace(second, offset=second.offset - 1), *rest])


def _wrapping(pack: bytes) -> bytes:
    """Offset and length that add up to something small in 64 bits."""
    first, *rest = stored(pack)
    return with_index(pack, [first, replace(rest[0], length=(1 << 64) - 1), *rest[1:]])


def _gap(pack: bytes) -> bytes:
    """Room for bytes that no digest covers."""
    first, *rest = stored(pack)
    return with_index(pack, [first, *(replace(entry, offset=entry.offset + 1) for entry in rest)])


def _hidden(pack: bytes) -> bytes:
    """Bytes between the last frame and the index."""
    return with_index(pack, stored(pack)[:-1])


def _outside(pack: bytes) -> bytes:
    *rest, last = stored(pack)
    return with_index(pack, [*rest, replace(last, length=last.length + 1)])


def _empty_frame(pack: bytes) -> bytes:
    first, *rest = stored(pack)
    return with_index(pack, [replace(first, length=0), *rest])


def _impossible_size(pack: bytes) -> bytes:
    first, *rest = stored(pack)
    return with_index(pack, [replace(first, size=first.length * (1 << 15) + 1), *rest])


def _many(pack: bytes) -> bytes:
    return pack[:-FOOTER] + struct.pack("<QII8s", 1 << 60, 1, 0, b"DIPACK01")


def _too_many(pack: bytes) -> bytes:
    return pack[:-FOOTER] + struct.pack("<QII8s", 4, 1, 0, b"DIPACK01")


def _other_frame(pack: bytes) -> bytes:
    start = len(pack) - FOOTER - 8 - 3 * 56
    return pack[:start] + b"\x28\xb5\x2f\xfd" + pack[start + 4 :]


INDEX_ATTACKS: list[tuple[Callable[[bytes], bytes], str]] = [
    (_reordered, "out of order or twice"),
    (_repeated, "out of order or twice"),
    (_overlapping, "overlaps the one before"),
    (_wrapping, "is not before byte"),
    (_gap, "expected its frame at byte"),
    (_hidden, "expected the index at byte"),
    (_outside, "is not before byte"),
    (_empty_frame, "is not before byte"),
    (_impossible_size, "are taken"),
    (_many, "can't hold"),
    (_too_many, "no index frame of 4 objects"),
    (_other_frame, "no index frame of 3 objects"),
    (lambda pack: pack[:-1], "expected b'DIPACK01' at the end"),
    (lambda pack: pack[:20], "expected at least 32 bytes, found 20"),
    (lambda pack: b"", "expected at least 32 bytes, found 0"),
    (lambda pack: b"<html>" * 100, "expected b'DIPACK01' at the end"),
    (lambda pack: pack[:-16] + struct.pack("<II8s", 2, 0, b"DIPACK01"), "expected version 1, found 2"),
    (lambda pack: pack[:-16] + struct.pack("<II8s", 1, 9, b"DIPACK01"), "reserved field 9"),
]


@pytest.mark.parametrize(("attack", "said"), INDEX_ATTACKS)
def test_an_index_that_write_could_not_have_made_is_refused(
    attack: Callable[[bytes], bytes], said: str
) -> None:
    with pytest.raises(Failure, match=said):
        reader(attack(pack_of(A, B, C)))


def _bomb(size: int) -> tuple[bytes, str]:
    content = bytes(size)
    return pack_of(content), fsverity.digest(content)


def test_a_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    pack, _ = _bomb(40 << 20)
    assert len(pack) < 10_000
    with pytest.raises(Failure, match="at most 1048576 are taken"):
        reader(pack, most=1 << 20)


@pytest.mark.parametrize("size", [1 << 20, 40 << 20])
def test_a_frame_that_holds_more_than_its_entry_says_is_refused(size: int) -> None:
    pack, digest = _bomb(size)
    (entry,) = stored(pack)
    lying = with_index(pack, [replace(entry, size=4096)])
    with pytest.raises(Failure, match="expected a frame of 4096 bytes"):
        reader(lying).fetch(digest)


def test_a_frame_that_does_not_say_its_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(A)
    pack = frame + packs.index([Stored(fsverity.digest(A), 0, len(frame), len(A))])
    with pytest.raises(Failure, match="expected a frame of 5000 bytes"):
        reader(pack).fetch(fsverity.digest(A))


def test_a_second_frame_behind_the_first_is_refused() -> None:
    frames = zstandard.ZstdCompressor().compress(A) + zstandard.ZstdCompressor().compress(B)
    pack = frames + packs.index([Stored(fsverity.digest(A), 0, len(frames), len(A))])
    with pytest.raises(Failure, match="not one zstd frame"):
        reader(pack).fetch(fsverity.digest(A))


def test_another_object_s_valid_content_is_refused() -> None:
    first, second = b"x" * 5000, b"y" * 5000
    pack = pack_of(first, second)
    entries = stored(pack)
    swapped = with_index(
        pack, [replace(entries[0], digest="00" * 32), replace(entries[1], digest=entries[1].digest)]
    )
    with pytest.raises(Failure, match="its content's fs-verity digest is"):
        reader(swapped).fetch("00" * 32)


@given(st.data())
def test_no_damage_goes_unnoticed(data: st.DataObject) -> None:
    pack = bytearray(pack_of(A, B, C))
    at = data.draw(st.integers(0, len(pack) - 1), label="at")
    pack[at] ^= data.draw(st.integers(1, 255), label="bits")
    wanted = {fsverity.digest(content): content for content in (A, B, C)}
    try:
        opened = reader(bytes(pack))
        found = {digest: opened.fetch(digest) for digest in opened.entries}
    except Failure:
        return
    # Bits that mean nothing to zstd may differ; what comes out may not.
    assert found == wanted


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(Failure):
        reader(noise + struct.pack("<QII8s", len(noise) // 56, 1, 0, b"DIPACK01"))
