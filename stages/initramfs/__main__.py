"""Write the initramfs: nothing in it comes from anywhere but the locked packages, the kernel and this
project.

Inputs `repository` (the runtime's packages), `modules` (the kernel's, a canonical tar), `release`, and the
recipe's files.
"""

from __future__ import annotations

from pathlib import Path

import zstandard

from initramfs import main as init
from initramfs import mounts
from stages.initramfs import bytecode, modules, runtime
from stages.initramfs.archive import Archive
from stages.shared.job import Job, main

_SOURCES = Path(init.__file__).parent
_HOME = "usr/lib/disk-image"
# Level 9 takes a fifth of a second where 19 takes three and saves a tenth. A window of 8 MiB is what every
# decoder must grant (RFC 8878, 3.1.1.1.2); one thread, since the number of threads shows in the bytes.
_LEVEL, _WINDOW_LOG = 9, 23


def program(job: Job) -> None:
    """Write the output `initramfs`."""
    archive = Archive()
    for path in (*mounts.SYSTEM, mounts.DISK, mounts.METADATA, mounts.WRITES, mounts.ROOT):
        archive.directory(path.lstrip("/"))
    python = runtime.add(archive, sorted(job.input("repository").rglob("*.deb")))
    _add_init(archive, python)
    release = job.input("release").read_text().strip()
    order = modules.add(
        archive, job.input("modules"), release, job.params["modules"], init.MODULES.lstrip("/")
    )
    for file in job.params["files"]:
        content = job.input(file["input"]).read_bytes()
        archive.file(file["path"].lstrip("/"), int(file["mode"], 8), content)
    plain = archive.to_bytes(job.source_date_epoch)
    packed = compress(plain)
    job.output("initramfs").write_bytes(packed)
    print(f"{python}, {len(order)} kernel modules, {len(plain)} bytes, {len(packed)} compressed")


def _add_init(archive: Archive, python: str) -> None:
    """/init is a script of the interpreter; the package that it imports is compiled."""
    sources = {f"{_HOME}/initramfs/{path.name}": path.read_bytes() for path in sorted(_SOURCES.glob("*.py"))}
    for path, content in bytecode.compile_all(sources, python).items():
        archive.file(path, 0o644, content)
    # isolated from environment and user, no site module, no writing of bytecode
    lines = (
        f"#!/usr/bin/{python} -ISB",
        "import sys",
        f'sys.path.insert(0, "/{_HOME}")',
        f"import {init.__name__} as init",
        "init.main()",
    )
    archive.file("init", 0o755, "\n".join((*lines, "")).encode())


def compress(plain: bytes) -> bytes:
    """One zstd frame with its size and checksum; the same bytes on any machine."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, window_log=_WINDOW_LOG, write_checksum=True
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(plain)


if __name__ == "__main__":
    main(program)
