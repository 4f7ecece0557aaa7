"""Running a guest until its console says how the boot ended."""

from __future__ import annotations

import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.boot.console import Console, Result
from stages.shared.job import Failure

_CHUNK = 65536
_GRACE_SECONDS = 5.0
_LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class Boot:
    """How a boot went. Seconds count from QEMU's start; None for what did not happen."""

    digest: str | None
    result: Result | None
    reason: str
    verified_seconds: float | None
    seconds: float
    last_lines: tuple[str, ...]


def boot(
    argv: Sequence[str], console: Console, log: Path, timeout_seconds: float, say: Callable[[str], None]
) -> Boot:
    """Run QEMU until the boot ends, the guest powers off or time is up, and end it. `log` gets the console's
    bytes.

    `say` gets the lines that the initramfs writes, as they appear. Raises Failure when QEMU itself fails.
    """
    started = time.monotonic()
    verified_after: float | None = None
    last: list[str] = []
    with tempfile.TemporaryFile() as errors, log.open("wb") as written:
        try:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        except FileNotFoundError:
            raise Failure(
                f"{argv[0]}: not found in the tools tree", "lock the tools: disk-image lock --tools"
            ) from None
        assert process.stdout is not None
        try:
            ended = False
            while (
                console.result is None
                and not ended
                and (left := started + timeout_seconds - time.monotonic()) > 0
            ):
                data = _read(process.stdout.fileno(), left)
                if data is None:
                    continue
                ended = not data
                written.write(data)
                for line in console.feed(data):
                    last = [*last[1 - _LAST_LINES :], line] if line.strip() else last
                    if "disk-image: " in line:
                        say(line[line.index("disk-image: ") :])
                if verified_after is None and console.verified is not None:
                    verified_after = time.monotonic() - started
            seconds = time.monotonic() - started
            if ended and console.result is None and process.wait(_GRACE_SECONDS):
                errors.seek(0)
                told = errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
                raise Failure(
                    f"{argv[0]}: exit code {process.returncode}: {told}",
                    "see the console for what came before",
                )
        finally:
            _end(process)
    reason = console.reason
    if console.result is None:
        reason = (
            "the guest powered off before its boot ended"
            if ended
            else f"no end of the boot within {timeout_seconds:g} s"
        )
    return Boot(console.verified, console.result, reason, verified_after, seconds, tuple(last))


def _read(fd: int, timeout_seconds: float) -> bytes | None:
    """What there is to read, b"" at the end, None when nothing came in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        if not selector.select(timeout_seconds):
            return None
    return os.read(fd, _CHUNK)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
