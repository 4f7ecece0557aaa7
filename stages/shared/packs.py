"""Packs: objects in one file, each a zstd frame of its own, with an index at the end.

The byte layout is docs/reference/pack-format.md; frames are those of RFC 8878. A pack is written in one pass
and read by ranges: two small reads at its tail give the index, one more gives an object. What a pack says is
believed only as far as an object's fs-verity digest bears it out.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from stages.shared import fsverity
from stages.shared.job import Failure

VERSION = 1
MAGIC = b"DIPACK01"
# docs/design.md, «Packs», has the figures this was chosen by.
LEVEL = 6
# RFC 8878, 3.1.2: the magic number of a skippable frame is 0x184D2A5?; then its size; both le32.
_SKIPPABLE = struct.Struct("<II")
_SKIPPABLE_MAGIC = 0x184D2A5E
_ENTRY = struct.Struct("<32sQQQ")
_FOOTER = struct.Struct("<QII8s")
# 56 MiB of index; a root has about ten thousand objects.
_MOST_ENTRIES = 1 << 20
# RFC 8878, 3.1.1.2: a block of 4 bytes can stand for 128 KiB, so no frame holds more than this a byte.
_MOST_RATIO = 1 << 15
# From this size on content is streamed, so that a few large objects don't fill the memory.
_STREAMED = 16 << 20
_CHUNK = 1 << 20
# Content that waits compressed, or to be compressed, before it is written.
_AHEAD = 64 << 20
# What zstd's own decompressor takes at most unless told otherwise (ZSTD_WINDOWLOG_LIMIT_DEFAULT).
_MOST_WINDOW = 1 << 27
_DAMAGED = "the pack is damaged, or was not written by this project; fetch or build it again"


@dataclass(frozen=True, slots=True)
class Object:
    """What goes into a pack: an fs-verity digest (hex), and the content's place in a file (bytes)."""

    digest: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Stored:
    """One object in a pack: its frame's offset and length, and its content's size, in bytes."""

    digest: str
    offset: int
    length: int
    size: int


def write(
    source: mmap.mmap | memoryview | bytes,
    objects: Iterable[Object],
    output: BinaryIO,
    workers: int | None = None,
) -> None:
    """Write the pack of `objects`, whose content is in `source` (a mapped file), sorted by digest.

    One thread alone compresses an object, so the bytes are the same for any number of `workers` (one a CPU
    when None). That content and digest belong together is for readers to check.
    """
    ordered = sorted(objects, key=lambda wanted: wanted.digest)
    entries: list[Stored] = []
    at = 0
    with memoryview(source) as view, ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        for wanted, frame in zip(ordered, _frames(view, ordered, pool), strict=True):
            length = 0
            for piece in frame:
                output.write(piece)
                length += len(piece)
            entries.append(Stored(wanted.digest, at, length, wanted.size))
            at += length
    output.write(index(entries))
    if isinstance(source, mmap.mmap):
        # Pages that were read once would stay in this process's resident set: a whole root's.
        source.madvise(mmap.MADV_DONTNEED)


def index(entries: Sequence[Stored]) -> bytes:
    """The skippable frame that ends a pack."""
    body = b"".join(
        _ENTRY.pack(bytes.fromhex(entry.digest), entry.offset, entry.length, entry.size) for entry in entries
    )
    footer = _FOOTER.pack(len(entries), VERSION, 0, MAGIC)
    return _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(body) + len(footer)) + body + footer


_kept = threading.local()


def _compressor() -> zstandard.ZstdCompressor:
    """This thread's own: making one costs more than compressing a small object."""
    if not hasattr(_kept, "compressor"):
        # No content checksum: the object's fs-verity digest says more.
        _kept.compressor = zstandard.ZstdCompressor(
            level=LEVEL, write_content_size=True, write_checksum=False
        )
    found: zstandard.ZstdCompressor = _kept.compressor
    return found


def _frames(
    source: memoryview, objects: Sequence[Object], pool: ThreadPoolExecutor
) -> Iterator[Iterable[bytes]]:
    """Each object's frame, in pieces, in order."""
    pending: deque[tuple[Object, Future[bytes] | None]] = deque()
    ahead = 0

    def first() -> Iterable[bytes]:
        nonlocal ahead
        wanted, future = pending.popleft()
        if future is None:
            return _streamed(_content(source, wanted))
        ahead -= wanted.size
        return (future.result(),)

    for wanted in objects:
        small = wanted.size < _STREAMED
        pending.append((wanted, pool.submit(_frame, _content(source, wanted)) if small else None))
        ahead += wanted.size if small else 0
        while ahead > _AHEAD:
            yield first()
    while pending:
        yield first()


def _content(source: memoryview, wanted: Object) -> memoryview:
    if not 0 <= wanted.offset <= wanted.offset + wanted.size <= len(source):
        raise Failure(
            f"object {wanted.digest}: {wanted.offset}+{wanted.size} is not inside {len(source)} bytes",
            "the list of objects is of another file",
        )
    return source[wanted.offset : wanted.offset + wanted.size]


def _frame(content: memoryview) -> bytes:
    return _compressor().compress(content)


def _streamed(content: memoryview) -> Iterator[bytes]:
    stream = _compressor().compressobj(size=len(content))
    for at in range(0, len(content), _CHUNK):
        yield stream.compress(content[at : at + _CHUNK])
    yield stream.flush()


Ranges = Callable[[int, int], bytes]


class Reader:
    """A pack of `size` bytes, read by ranges: `read(offset, length)` gives exactly that range or raises.

    Opening makes two reads and refuses (Failure) every index that `write` could not have made: entries out
    of order or twice, frames that overlap, leave gaps or lie outside, sizes that no frame of that length
    can have, or that pass `most` bytes for one object.
    """

    def __init__(self, read: Ranges, size: int, *, name: str = "pack", most: int = 4 << 30) -> None:
        self._read = read
        self._name = name
        self._most = most
        self.entries: Mapping[str, Stored] = self._index(size)

    def fetch(self, digest: str) -> bytes:
        """An object's content, whole and verified; Failure if it is absent or not what its name says."""
        return b"".join(self.stream(digest))

    def stream(self, digest: str) -> Iterator[bytes]:
        """An object's content in pieces, large ones in constant memory.

        It is verified when the last piece has been taken, and Failure then means that all pieces are to be
        thrown away.
        """
        entry = self.entries.get(digest)
        if entry is None:
            raise Failure(
                f"{self._name}: no object {digest}",
                "another pack has it, or the image's packs are incomplete",
            )
        hasher = fsverity.Hasher()
        found = 0
        try:
            for piece in self._pieces(entry):
                found += len(piece)
                if found > entry.size:
                    break
                hasher.update(piece)
                yield piece
        except zstandard.ZstdError as error:
            raise self._refused(
                f"object {digest}: not one zstd frame of {entry.size} bytes: {error}"
            ) from None
        if found != entry.size:
            raise self._refused(
                f"object {digest}: expected {entry.size} bytes of content, found {found} or more"
            )
        measured = hasher.merkle().digest
        if measured != digest:
            raise self._refused(f"object {digest}: its content's fs-verity digest is {measured}")

    def _pieces(self, entry: Stored) -> Iterator[bytes]:
        start = self._read(entry.offset, min(entry.length, _CHUNK))
        stated = zstandard.get_frame_parameters(start)
        if stated.content_size != entry.size or stated.dict_id:
            raise self._refused(
                f"object {entry.digest}: expected a frame of {entry.size} bytes without a dictionary, "
                f"found one of {stated.content_size}"
            )
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW)
        if entry.size < _STREAMED:
            rest = (
                self._read(entry.offset + len(start), entry.length - len(start))
                if len(start) < entry.length
                else b""
            )
            yield decompressor.decompress(start + rest, max_output_size=entry.size, allow_extra_data=False)
            return
        source = cast(BinaryIO, _Frame(self._read, entry, start))
        with decompressor.stream_reader(source, read_across_frames=False, closefd=False) as content:
            while piece := content.read(_CHUNK):
                yield piece

    def _index(self, size: int) -> dict[str, Stored]:
        least = _SKIPPABLE.size + _FOOTER.size
        if size < least:
            raise self._refused(f"expected at least {least} bytes, found {size}")
        count, version, reserved, magic = _FOOTER.unpack(self._read(size - _FOOTER.size, _FOOTER.size))
        if magic != MAGIC:
            raise self._refused(f"expected {MAGIC!r} at the end, found {magic!r}")
        if (version, reserved) != (VERSION, 0):
            raise self._refused(f"expected version {VERSION}, found {version} (reserved field {reserved})")
        length = least + count * _ENTRY.size
        if count > _MOST_ENTRIES or length > size:
            raise self._refused(f"its index says {count} objects, which a pack of {size} bytes can't hold")
        start = size - length
        raw = self._read(start, length - _FOOTER.size)
        if _SKIPPABLE.unpack_from(raw) != (_SKIPPABLE_MAGIC, length - _SKIPPABLE.size):
            raise self._refused(f"no index frame of {count} objects at byte {start}")
        found: dict[str, Stored] = {}
        end, last = 0, b""
        for key, offset, stored, content in _ENTRY.iter_unpack(raw[_SKIPPABLE.size :]):
            entry = Stored(key.hex(), offset, stored, content)
            if found and key <= last:
                raise self._refused(f"object {entry.digest}: out of order or twice in the index")
            if offset < end:
                raise self._refused(
                    f"object {entry.digest}: its frame at {offset} overlaps the one before, to {end}"
                )
            if offset > end:
                raise self._refused(
                    f"object {entry.digest}: expected its frame at byte {end}, found {offset}"
                )
            end, last = offset + stored, key
            if end > start or stored == 0:
                raise self._refused(
                    f"object {entry.digest}: its frame {offset}+{stored} is not before byte {start}"
                )
            if content > self._most or content > stored * _MOST_RATIO:
                raise self._refused(
                    f"object {entry.digest}: {content} bytes from a frame of {stored}; at most "
                    f"{min(self._most, stored * _MOST_RATIO)} are taken"
                )
            found[entry.digest] = entry
        if end != start:
            raise self._refused(f"expected the index at byte {end}, found it at {start}")
        return found

    def _refused(self, why: str) -> Failure:
        return Failure(f"{self._name}: {why}", _DAMAGED)


class _Frame:
    """One frame as the file that a zstd stream reader reads from."""

    def __init__(self, read: Ranges, entry: Stored, start: bytes) -> None:
        self._read = read
        self._at = entry.offset + len(start)
        self._end = entry.offset + entry.length
        self._start = start

    def read(self, size: int = -1) -> bytes:
        if self._start:
            start, self._start = self._start, b""
            return start
        length = min(_CHUNK, self._end - self._at)
        if length == 0:
            return b""
        piece = self._read(self._at, length)
        self._at += length
        return piece


@contextmanager
def open_pack(path: Path, *, most: int = 4 << 30) -> Iterator[Reader]:
    """A pack in a file."""
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            found = os.pread(file.fileno(), length, offset)
            if len(found) != length:
                raise Failure(f"{path.name}: truncated at byte {offset + len(found)}", _DAMAGED)
            return found

        yield Reader(read, os.fstat(file.fileno()).st_size, name=path.name, most=most)


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """A file's bytes, for `write`."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            yield data
