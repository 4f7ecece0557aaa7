"""An ext4 file system whose files have fs-verity, made without mounting anything, by an ordinary user.

On disk, a file with verity is its content, then from the next multiple of 64 KiB its Merkle tree, then a
block with the descriptor at its start and the descriptor's size in its last four bytes; the inode's size is
that of the content, and its flags carry EXT4_VERITY_FL (Linux fs/ext4/verity.c;
Documentation/filesystems/fsverity.rst, «ext4»). mke2fs copies files of that shape from a folder, and debugfs
then sets sizes and flags.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from stages.shared import fsverity
from stages.shared.job import Failure, run

_BLOCK = 4096
_METADATA_ALIGNMENT = 65536
_EXTENTS_AND_VERITY = 0x80000 | 0x100000
_INODE = 256
# Fixed, so that equal layouts give disks that differ in nothing but what mke2fs takes from the staging
# folder.
_UUID = "6469736b-2d69-4d61-a765-000000000001"
_SLACK = 16 << 20
_HINT = (
    "remove what is left of the disk and run again; if it repeats, relock the tools: disk-image lock --tools"
)


class Disk:
    """Collects files below a staging folder, then writes the file system."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self._sizes: dict[str, int] = {}
        self._blocks = 0
        self._folders: set[str] = set()

    def add(self, path: str, chunks: Iterable[bytes]) -> str:
        """Add the file `path` (relative) with that content; returns its fs-verity digest (hex)."""
        target = self._staging / path
        target.parent.mkdir(parents=True, exist_ok=True)
        self._folders.add(os.path.dirname(path))
        hasher = fsverity.Hasher()
        with target.open("xb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                hasher.update(chunk)
            size = stream.tell()
            merkle = hasher.merkle()
            stream.seek(-(-size // _METADATA_ALIGNMENT) * _METADATA_ALIGNMENT)
            stream.write(merkle.tree)
            length = len(merkle.descriptor)
            stream.write(merkle.descriptor.ljust(_BLOCK - 4, b"\0") + length.to_bytes(4, "little"))
        self._sizes[path] = size
        self._blocks += -(-size // _BLOCK) + len(merkle.tree) // _BLOCK + 1
        return merkle.digest

    def write(self, output: Path, label: str) -> None:
        """Make the file system at `output` (sparse). Raises Failure with the tool's own words."""
        inodes = len(self._sizes) + 2 * len(self._folders) + 64
        size = self._blocks * _BLOCK + inodes * _INODE + len(self._folders) * _BLOCK
        size += size // 32 + _SLACK
        output.unlink(missing_ok=True)
        # Nothing writes to it, so it needs no journal and no room to grow.
        features = "verity,^has_journal,^resize_inode"
        settings = f"hash_seed={_UUID},lazy_itable_init=0,nodiscard,root_owner=0:0"
        argv = (
            *("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0"),
            *("-b", str(_BLOCK), "-I", str(_INODE), "-N", str(inodes)),
            *("-L", label, "-U", _UUID, "-O", features, "-E", settings),
            *("-d", str(self._staging), str(output), f"{size // 1024}k"),
        )
        run(argv, hint=_HINT)
        commands = output.with_suffix(".debugfs")
        commands.write_text(
            "".join(
                f"sif /{path} size {size}\nsif /{path} flags {_EXTENTS_AND_VERITY:#x}\n"
                for path, size in self._sizes.items()
            )
        )
        done = run(
            ["debugfs", "-w", "-f", str(commands), str(output)],
            hint=_HINT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        # It exits 0 whatever a command did, and its first line on standard error is its version.
        said = [line for line in done.stderr.splitlines() if line.strip()][1:]
        if said:
            raise Failure(f"debugfs: {said[0]}", _HINT)
        commands.unlink()
