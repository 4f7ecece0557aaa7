"""A stage of the boot tests: boots an image from a disk that was changed offline, and says how that ended.

Inputs `layout`, `tree` (the root, to know a path's object), `other` (a metadata image). Parameters:
`change` (one of CHANGES), `path` and `donor` (paths in the root), `words` (replaced in the command line),
`reached` (the line that ends a good boot), and the boot stage's own. Outputs `verdict` and `console`; a
refused boot is a result here, no failure.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from stages.boot import disk, guest, layout
from stages.boot.console import Console
from stages.boot.ext4_verity import Disk
from stages.boot.machine import command, machine
from stages.shared import canonical_tar, fsverity
from stages.shared.job import Failure, Job, main, run

_OTHER = "composefs/images/other.cfs"


def program(job: Job) -> None:
    """Write both outputs."""
    image = layout.read(job.input("layout"))
    with tempfile.TemporaryDirectory(prefix="trial-") as scratch:
        drive = Path(scratch, "disk.img")
        made = Disk(Path(scratch, "staging"))
        disk.fill(made, image)
        made.add(_OTHER, [job.input("other").read_bytes()])
        made.write(drive, disk.LABEL)
        CHANGES[job.params["change"]](Changed(drive, image, job))
        line = image.command_line
        for old, new in job.params["words"].items():
            line = line.replace(old, new)
        argv = command(
            machine(image.arch),
            kernel=image.kernel,
            initramfs=image.initramfs,
            command_line=f"{line} systemd.show_status=1",
            disk=drive,
            memory_mib=job.params["memory_mib"],
        )
        console = Console(reached=re.compile(job.params["reached"]))
        seen = guest.boot(argv, console, job.output("console"), job.params["timeout_seconds"], print)
    job.output("verdict").write_text(json.dumps(dataclasses.asdict(seen)))


@dataclasses.dataclass(frozen=True)
class Changed:
    """The disk to change, and where what stands on it."""

    drive: Path
    image: layout.Image
    job: Job

    @property
    def metadata(self) -> str:
        return f"composefs/images/{self.image.digest}.cfs"

    def content(self, parameter: str) -> bytes:
        """The root's file which the parameter names."""
        wanted = self.job.params[parameter]
        for entry, offset in canonical_tar.read(self.job.input("tree")):
            if entry.path == wanted and entry.size:
                with self.job.input("tree").open("rb") as stream:
                    stream.seek(offset)
                    return stream.read(entry.size)
        raise Failure(f"the root has no file {wanted}", "correct the test")

    def object_of(self, parameter: str) -> str:
        """The disk's path of that file's object."""
        return disk.object_path(fsverity.digest(self.content(parameter)))

    def debugfs(self, *requests: str, write: bool = True) -> str:
        """Run requests on the disk; what it prints."""
        script = self.drive.with_suffix(".requests")
        script.write_text("".join(f"{request}\n" for request in requests))
        argv = ["debugfs", *(("-w",) if write else ()), "-f", str(script), str(self.drive)]
        done = run(argv, hint="correct the test", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        said: str = done.stdout
        return said

    def flip(self, path: str, position: int) -> None:
        """Change one bit of a file's content on the disk, as a broken or a hostile medium does."""
        said = self.debugfs(f"bmap /{path} {position // 4096}", write=False)
        block = int(said.split()[-1])
        with self.drive.open("r+b") as stream:
            stream.seek(block * 4096 + position % 4096)
            old = stream.read(1)
            stream.seek(-1, 1)
            stream.write(bytes([old[0] ^ 1]))


def _nothing(changed: Changed) -> None:
    return


def _flip_start(changed: Changed) -> None:
    changed.flip(changed.object_of("path"), 100)


def _flip_dynamic(changed: Changed) -> None:
    """In the dynamic section of a 64-bit ELF file: the loader reads it, exec(2) doesn't."""
    program = changed.content("path")
    (table,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    headers = [struct.unpack_from("<IIQ", program, table + number * size) for number in range(count)]
    (position,) = [offset for kind, _, offset in headers if kind == 2]
    changed.flip(changed.object_of("path"), position)


def _flip_metadata(changed: Changed) -> None:
    changed.flip(changed.metadata, 1024 + 100)


def _swap_object(changed: Changed) -> None:
    path, other = changed.object_of("path"), changed.object_of("donor")
    changed.debugfs(f"unlink /{path}", f"ln /{other} /{path}")


def _swap_metadata(changed: Changed) -> None:
    changed.debugfs(f"unlink /{changed.metadata}", f"ln /{_OTHER} /{changed.metadata}")


def _object_without_verity(changed: Changed) -> None:
    changed.debugfs(f"sif /{changed.object_of('path')} flags 0x80000")


def _metadata_without_verity(changed: Changed) -> None:
    changed.debugfs(f"sif /{changed.metadata} flags 0x80000")


def _another_label(changed: Changed) -> None:
    changed.debugfs("set_super_value volume_name someone-elses")


CHANGES: Mapping[str, Callable[[Changed], None]] = {
    "nothing": _nothing,
    "flip-start": _flip_start,
    "flip-dynamic": _flip_dynamic,
    "flip-metadata": _flip_metadata,
    "swap-object": _swap_object,
    "swap-metadata": _swap_metadata,
    "object-without-verity": _object_without_verity,
    "metadata-without-verity": _metadata_without_verity,
    "another-label": _another_label,
}


if __name__ == "__main__":
    main(program)
