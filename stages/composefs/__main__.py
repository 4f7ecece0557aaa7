"""tree → metadata, digest, dump, objects.

Everything is computed from the canonical tar's entries, never from a directory walk, which loses hard links
and picks up live times. The digest is computed twice, by mkcomposefs and here; a difference stops the
build.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from subprocess import PIPE

from stages.composefs import dump, objects
from stages.shared import canonical_tar, dpkg_files, fsverity
from stages.shared.canonical_tar import Entry, Kind
from stages.shared.job import Failure, Job, main, run

# The format that composefs 1.0.8 writes by default; 1 differs in one byte of the header, and where overlay
# whiteouts are, which a canonical tar can't hold.
FORMAT_VERSION = 0


def program(job: Job) -> None:
    """Write the four outputs."""
    tar = job.input("tree")
    entries: list[Entry] = []
    offsets: dict[str, int] = {}
    for entry, offset in canonical_tar.read(tar):
        entries.append(entry)
        if entry.kind is Kind.FILE:
            offsets[entry.path] = offset
    files = {entry.path: entry for entry in entries if entry.kind is Kind.FILE}
    large = [entry for entry in files.values() if entry.size > dump.INLINE_MOST]
    digests = fsverity.digests(tar, [(offsets[entry.path], entry.size) for entry in large])
    found = [
        objects.Found(entry.path, offsets[entry.path], entry.size, digest)
        for entry, digest in zip(large, digests, strict=True)
    ]
    with tar.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:

        def read(path: str) -> bytes | None:
            entry = files.get(path)
            return None if entry is None else data[offsets[path] : offsets[path] + entry.size]

        contents = {content.path: dump.Content(digest=content.digest) for content in found}
        for path, entry in files.items():
            if 0 < entry.size <= dump.INLINE_MOST:
                contents[path] = dump.Content(inline=read(path) or b"")
        sources = _sources(entries, dpkg_files.source_packages(_paths(entries), read))
    with job.output("dump").open("wb") as output:
        output.writelines(dump.lines(entries, contents))
    with job.output("objects").open("w") as lines:
        lines.writelines(objects.index(found, sources))
    digest = _metadata(job.output("dump"), job.output("metadata"))
    job.output("digest").write_text(digest + "\n")
    print(
        f"{len(entries)} entries, {len(found)} of them larger than {dump.INLINE_MOST} bytes; sha256:{digest}"
    )


def _paths(entries: Sequence[Entry]) -> dict[str, str | None]:
    return {entry.path: entry.target if entry.kind is Kind.SYMLINK else None for entry in entries}


def _sources(entries: Sequence[Entry], by_path: dict[str, str]) -> dict[str, str]:
    """A hard link's content is at its first path: the smallest name of all its paths' packages has it."""
    for entry in entries:
        if entry.kind is Kind.HARDLINK and entry.path in by_path:
            by_path[entry.target] = min(by_path[entry.path], by_path.get(entry.target, by_path[entry.path]))
    return by_path


def _metadata(text: Path, image: Path) -> str:
    """Write the metadata image; its fs-verity digest, on which both programs agree."""
    version = [f"--min-version={FORMAT_VERSION}", f"--max-version={FORMAT_VERSION}"]
    command = ["mkcomposefs", "--from-file", *version, "--print-digest", os.fspath(text), os.fspath(image)]
    printed = run(command, hint="mkcomposefs refused the dump; its message is above", stdout=PIPE, text=True)
    theirs = str(printed.stdout).strip()
    (ours,) = fsverity.digests(image, [(0, image.stat().st_size)])
    if ours != theirs:
        raise Failure(
            f"metadata image: expected the fs-verity digest {ours}, mkcomposefs says {theirs}",
            "the image or one of the two computations is broken; keep the dump and report it",
        )
    return ours


if __name__ == "__main__":
    main(program)
