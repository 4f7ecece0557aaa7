"""fs-verity digests and Merkle trees, as the kernel makes them (Documentation/filesystems/fsverity.rst).

One parameter set, the one that composefs and this project's images use: sha256, blocks of 4096 bytes, no
salt. A file's digest is the sha256 of its 256-byte descriptor, which holds the file's size and the root hash
of a Merkle tree over its content; it equals what FS_IOC_MEASURE_VERITY and `fsverity digest` say.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import BinaryIO

from stages.shared.job import Failure

BLOCK = 4096
ALGORITHM = "sha256"
_HASH = 32
_CHUNK = 1 << 20
# struct fsverity_descriptor: version, hash_algorithm, log_blocksize, salt_size, le32 reserved, le64
# data_size, root_hash[64], salt[32], reserved[144].
_DESCRIPTOR = struct.Struct("<BBBBIQ64s32s144x")
_VERSION, _SHA256, _LOG_BLOCK = 1, 1, 12
# Content a worker takes at a time: large against the cost of a message, small against the last one's wait.
_TASK = 4 << 20


@dataclass(frozen=True, slots=True)
class Merkle:
    """What a file system stores to make one file verity.

    `tree` is the Merkle tree as stored: the top level first, each level padded with zeros to whole blocks;
    it is empty for files of at most one block. `descriptor` has 256 bytes; `digest` is its sha256 in hex.
    """

    tree: bytes
    descriptor: bytes
    digest: str


class Hasher:
    """Takes a file's content piece by piece. Holds 32 bytes for each 4096 seen."""

    def __init__(self) -> None:
        self._leaves: list[bytes] = []
        self._rest = b""
        self._size = 0

    def update(self, data: bytes | memoryview) -> None:
        """Add the next piece, of any length."""
        self._size += len(data)
        view = memoryview(data)
        start = 0
        if self._rest:
            start = BLOCK - len(self._rest)
            self._rest += bytes(view[:start])
            if len(self._rest) < BLOCK:
                return
            self._leaves.append(sha256(self._rest).digest())
        end = len(view) - (len(view) - start) % BLOCK
        self._leaves += [sha256(view[at : at + BLOCK]).digest() for at in range(start, end, BLOCK)]
        self._rest = bytes(view[end:])

    def merkle(self) -> Merkle:
        """The tree over everything seen so far."""
        leaves = b"".join(self._leaves)
        if self._rest:
            leaves += sha256(self._rest.ljust(BLOCK, b"\0")).digest()
        return _merkle(leaves, self._size)


def merkle(data: BinaryIO | bytes | memoryview, size: int | None = None) -> Merkle:
    """Tree, descriptor and digest of `data`: bytes, or a stream read to its end.

    With `size` given, exactly that many bytes are taken; Failure when there are fewer.
    """
    hasher = Hasher()
    if isinstance(data, (bytes, memoryview)):
        found = len(data) if size is None else min(size, len(data))
        hasher.update(memoryview(data)[:found])
    else:
        found = 0
        while chunk := data.read(_CHUNK if size is None else min(_CHUNK, size - found)):
            hasher.update(chunk)
            found += len(chunk)
    if size is not None and found != size:
        raise Failure(
            f"expected {size} bytes to measure, found {found}", "the file was truncated; make it again"
        )
    return hasher.merkle()


def digest(data: BinaryIO | bytes | memoryview, size: int | None = None) -> str:
    """The fs-verity digest of `data` (as `merkle` takes it), 64 hex digits."""
    return merkle(data, size).digest


def digests(path: Path, ranges: Sequence[tuple[int, int]], workers: int | None = None) -> list[str]:
    """The digest of each range (offset, size in bytes) of a file, in the order given.

    `workers` processes (one a CPU when None) share the content, large ranges included; the result is the
    same for any number. Failure when a range is not inside the file.
    """
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        for offset, size in ranges:
            if not 0 <= offset <= offset + size <= length:
                raise Failure(
                    f"{path.name}: range {offset}+{size} is not inside its {length} bytes",
                    "the file was truncated; make it again",
                )
        if length == 0:
            return [digest(b"")] * len(ranges)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return _digests(data, ranges, workers or len(os.sched_getaffinity(0)))


# A worker's unit: which range, and the part of it. A part that is not its whole range is whole blocks, but
# for the range's end.
_Part = tuple[int, int, int]


def _digests(data: mmap.mmap, ranges: Sequence[tuple[int, int]], workers: int) -> list[str]:
    tasks = list(_tasks(ranges))
    leaves: dict[int, list[bytes]] = {}
    found = [""] * len(ranges)

    def work(task: list[_Part]) -> list[bytes]:
        results = []
        with memoryview(data) as view:
            for index, offset, size in task:
                part = _leaves(view[offset : offset + size])
                whole = size == ranges[index][1]
                results.append(bytes.fromhex(_merkle(part, size).digest) if whole else part)
        # Pages that were read once would stay in this process's resident set: a whole root's.
        data.madvise(mmap.MADV_DONTNEED)
        return results

    results = _in_workers(work, tasks, min(workers, len(tasks)))
    for task, parts in zip(tasks, results, strict=True):
        for (index, _, size), part in zip(task, parts, strict=True):
            if size == ranges[index][1]:
                found[index] = part.hex()
            else:
                leaves.setdefault(index, []).append(part)
    for index, pieces in leaves.items():
        found[index] = _merkle(b"".join(pieces), ranges[index][1]).digest
    return found


def _tasks(ranges: Sequence[tuple[int, int]]) -> Iterator[list[_Part]]:
    task: list[_Part] = []
    room = _TASK
    for index, (offset, size) in enumerate(ranges):
        for at in range(0, max(size, 1), _TASK):
            part = min(_TASK, size - at)
            task.append((index, offset + at, part))
            room -= part + BLOCK  # empty and tiny ranges cost about as much as a block
            if room <= 0:
                yield task
                task, room = [], _TASK
    if task:
        yield task


def _in_workers(
    work: Callable[[list[_Part]], list[bytes]], tasks: list[list[_Part]], workers: int
) -> list[list[bytes]]:
    """Results in the order of tasks. Workers are forks: they see the mapped file without copying it."""
    if workers <= 1:
        return [work(task) for task in tasks]
    fork = multiprocessing.get_context("fork")
    # Task numbers go through one pipe that all workers read; reads of so few bytes are never split
    # (pipe(7)). A pipe holds 64 KiB: the numbers are written before anyone reads, so they have to fit.
    if len(tasks) > 16384:
        half = len(tasks) // 2
        return _in_workers(work, tasks[:half], workers) + _in_workers(work, tasks[half:], workers)
    queue, entrance = os.pipe()
    os.write(entrance, struct.pack(f"={len(tasks)}I", *range(len(tasks))))
    os.close(entrance)

    def serve(answers: Connection) -> None:
        while number := os.read(queue, 4):
            (index,) = struct.unpack("=I", number)
            answers.send((index, work(tasks[index])))

    results: dict[int, list[bytes]] = {}
    started = []
    for _ in range(workers):
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=serve, args=(sender,), daemon=True)
        process.start()
        sender.close()
        started.append((process, receiver))
    os.close(queue)
    waiting: list[Connection] = [receiver for _, receiver in started]
    while waiting:
        for ready in wait(waiting):
            assert isinstance(ready, Connection)
            try:
                index, result = ready.recv()
                results[index] = result
            except EOFError:
                waiting.remove(ready)
                ready.close()
    for process, _ in started:
        process.join()
        if process.exitcode != 0:
            raise Failure(
                f"a process that measures files ended with exit code {process.exitcode}",
                "its own message is above in the log; a negative code is the signal that ended it",
            )
    return [results[index] for index in range(len(tasks))]


def _leaves(view: memoryview) -> bytes:
    size = len(view)
    end = size - size % BLOCK
    hashes = [sha256(view[at : at + BLOCK]).digest() for at in range(0, end, BLOCK)]
    if end != size:
        hashes.append(sha256(bytes(view[end:]).ljust(BLOCK, b"\0")).digest())
    return b"".join(hashes)


def _merkle(leaves: bytes, size: int) -> Merkle:
    """From the hashes of the content's blocks, in order."""
    levels: list[bytes] = []
    hashes = leaves
    while len(hashes) > _HASH:
        padded = hashes + bytes(-len(hashes) % BLOCK)
        levels.append(padded)
        hashes = b"".join([sha256(padded[at : at + BLOCK]).digest() for at in range(0, len(padded), BLOCK)])
    # An empty file's root hash is all zeros.
    descriptor = _DESCRIPTOR.pack(_VERSION, _SHA256, _LOG_BLOCK, 0, 0, size, hashes, b"")
    return Merkle(b"".join(reversed(levels)), descriptor, sha256(descriptor).hexdigest())
