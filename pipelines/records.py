"""What the store keeps about a stage's run: its key's document, its outputs, and how to see that they are
intact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from os import stat_result

from pipelines.definition import Json, OutputKind, canonical_json
from pipelines.keys import Content, Document


@dataclass(frozen=True, slots=True)
class Signature:
    """What a blob's inode says when nobody has touched it: size in bytes, mtime in nanoseconds, inode
    number.
    """

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: stat_result) -> Signature:
        """The signature of a file from its stat."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    def __str__(self) -> str:
        return f"size {self.size}, mtime {self.mtime_ns} ns, inode {self.inode}"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of an output of kind `files`."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Stored:
    """An output in the store: its content, its size in bytes, and for `files` the files."""

    content: Content
    size: int
    files: tuple[StoredFile, ...] = ()

    def blobs(self) -> Iterator[tuple[str, int]]:
        """The (sha256, size) of every blob that the output stands on."""
        if self.content.kind is OutputKind.FILE:
            yield (self.content.digest, self.size)
        else:
            for file in self.files:
                yield (file.sha256, file.size)


@dataclass(frozen=True, slots=True)
class Record:
    """One result: the stage's name and key, the key's document, what came out, and the run's duration in
    seconds.
    """

    stage: str
    key: str
    document: Document
    outputs: dict[str, Stored]
    signatures: dict[str, Signature]
    seconds: float

    @property
    def size(self) -> int:
        """The outputs' size in bytes."""
        return sum(output.size for output in self.outputs.values())

    def same_outputs(self, other: Record) -> bool:
        """Whether both runs gave the same content."""
        return {name: stored.content for name, stored in self.outputs.items()} == {
            name: stored.content for name, stored in other.outputs.items()
        }

    def to_bytes(self) -> bytes:
        """The record's file."""
        outputs: dict[str, Json] = {
            name: {
                "kind": stored.content.kind.value,
                "digest": stored.content.digest,
                "size": stored.size,
                "files": [[file.path, file.sha256, file.size] for file in stored.files],
            }
            for name, stored in self.outputs.items()
        }
        blobs: dict[str, Json] = {
            sha256: [signature.size, signature.mtime_ns, signature.inode]
            for sha256, signature in self.signatures.items()
        }
        return canonical_json(
            {
                "stage": self.stage,
                "key": self.key,
                "document": self.document,
                "outputs": outputs,
                "blobs": blobs,
                # canonical JSON has no fractions here: milliseconds
                "milliseconds": round(self.seconds * 1000),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Read a record's file; ValueError when it is not one."""
        try:
            loaded = json.loads(data)
            outputs = {
                name: Stored(
                    Content(OutputKind(stored["kind"]), stored["digest"]),
                    stored["size"],
                    tuple(StoredFile(*file) for file in stored["files"]),
                )
                for name, stored in loaded["outputs"].items()
            }
            signatures = {sha256: Signature(*blob) for sha256, blob in loaded["blobs"].items()}
            record = cls(
                loaded["stage"],
                loaded["key"],
                loaded["document"],
                outputs,
                signatures,
                loaded["milliseconds"] / 1000,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a result: {error}") from error
        if {sha256 for stored in outputs.values() for sha256, _ in stored.blobs()} != set(signatures):
            raise ValueError("not a result: its blobs are not those of its outputs")
        return record
