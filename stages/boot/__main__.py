"""Boot an image's layout in QEMU and write the verdict: the digest that the guest measured, and whether it
came up.

The command line is the config's, with one word after it that only this check adds: `systemd.show_status=1`
makes systemd print the targets it reaches, whatever `quiet` the recipe has (kernel-command-line(7)). The
verdict states the line used.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from stages.boot import disk, guest, layout
from stages.boot.console import Console, Result
from stages.boot.machine import command, machine
from stages.shared.job import Failure, Job, main

_SHOW_TARGETS = "systemd.show_status=1"


def program(job: Job) -> None:
    """Write the outputs `verdict` and `console`; Failure unless the root was verified and systemd reached
    multi-user.
    """
    image = layout.read(job.input("layout"))
    if image.arch != job.params["arch"]:
        raise Failure(
            f"the image is for {image.arch}, this check boots {job.params['arch']}",
            "boot it on a machine of its own kind",
        )
    hardware = machine(image.arch)
    command_line = f"{image.command_line} {_SHOW_TARGETS}"
    with tempfile.TemporaryDirectory(prefix="boot-") as scratch:
        drive = Path(scratch, "disk.img")
        disk.write(image, drive)
        argv = command(
            hardware,
            kernel=image.kernel,
            initramfs=image.initramfs,
            command_line=command_line,
            disk=drive,
            memory_mib=job.params["memory_mib"],
        )
        seen = guest.boot(argv, Console(), job.output("console"), job.params["timeout_seconds"], _say)
    booted = seen.result is Result.BOOTED and seen.digest == image.digest
    verdict = {
        "booted": booted,
        "composefs_digest": seen.digest,
        "reason": seen.reason,
        "seconds": round(seen.seconds, 2),
        "verified_seconds": None if seen.verified_seconds is None else round(seen.verified_seconds, 2),
        "accelerator": "tcg",
        "command_line": command_line,
    }
    job.output("verdict").write_text(json.dumps(verdict, sort_keys=True, indent=2) + "\n")
    if not booted:
        _tell(job.output("console"))
        raise _failure(image, seen, hardware.console)


def _say(line: str) -> None:
    print(line, flush=True)


def _tell(console: Path) -> None:
    """The whole console goes into the log; the mark keeps a guest from writing lines that the executor
    reads.
    """
    for line in console.read_bytes().decode("utf-8", "replace").splitlines():
        print(f"| {line}")


def _failure(image: layout.Image, seen: guest.Boot, console: str) -> Failure:
    if seen.digest is not None and seen.digest != image.digest:
        return Failure(
            f"the guest verified another root: expected sha256:{image.digest}, found sha256:{seen.digest}",
            "the initramfs is not of this image; build it again",
            code="digest_mismatch",
        )
    hint = f"see the console; the command line must name the serial console: console={console}"
    if seen.result is Result.REFUSED:
        hint = "the disk or the command line is not what the image states; the line says what was found"
    code = seen.result.value if seen.result in (Result.REFUSED, Result.PANIC) else "timeout"
    return Failure(f"the guest did not boot: {seen.reason}", hint, code=code, details=seen.last_lines)


if __name__ == "__main__":
    main(program)
