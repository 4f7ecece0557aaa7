"""Run a stage's program: its output to the log, its protocol lines to the run, and nothing left when it is
cancelled.
"""

from __future__ import annotations

import json
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import IO

import anyio
from anyio.abc import Process

# Lines of a failed stage's log that are shown, and bytes of a line that are looked at.
TAIL = 60
_LONGEST_LINE = 1 << 16
_CHUNK = 1 << 16


@dataclass(slots=True)
class Told:
    """What a program told through its `@error` line: what failed, what to do, its word for it,
    machine-readable items.
    """

    what: str
    hint: str
    code: str = "failed"
    details: tuple[str, ...] = ()


@dataclass(slots=True)
class Outcome:
    """How a program ended: `returncode` is negative for a signal; `tail` are its log's last lines."""

    returncode: int
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))
    error: Told | None = None


async def execute(
    argv: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    log: IO[bytes],
    progress: Callable[[int, int, str], None],
    delete: Sequence[str] = (),
) -> Outcome:
    """Run a program to its end in `folder`. Cancelled, it kills the program's session and runs `delete`
    first.

    Raises OSError when the log can't be written.
    """
    outcome = Outcome(0)
    # A session of its own: Ctrl-C reaches disk-image alone, which then ends the program.
    process = await anyio.open_process(
        argv, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, cwd=folder, env=environment, start_new_session=True
    )
    try:
        await _read(process, log, progress, outcome)
        outcome.returncode = await process.wait()
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process, delete, environment)
    return outcome


async def _end(process: Process, delete: Sequence[str], environment: Mapping[str, str]) -> None:
    if process.returncode is None and delete:
        await anyio.run_process(delete, check=False, env=environment, stdout=DEVNULL, stderr=DEVNULL)
    # Also after an orderly end: a program of the host may have left children in its session.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    await process.aclose()


async def _read(
    process: Process, log: IO[bytes], progress: Callable[[int, int, str], None], outcome: Outcome
) -> None:
    assert process.stdout is not None
    rest = b""
    while True:
        try:
            rest += await process.stdout.receive(_CHUNK)
        except anyio.EndOfStream:
            break
        *lines, rest = rest.split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines.append(rest)
            rest = b""
        for line in lines:
            _line(line, log, progress, outcome)
        log.flush()
    if rest:
        _line(rest, log, progress, outcome)
    log.flush()


def _line(raw: bytes, log: IO[bytes], progress: Callable[[int, int, str], None], outcome: Outcome) -> None:
    if raw.startswith(b"@progress "):
        try:
            told = json.loads(raw[len(b"@progress ") :])
            progress(int(told["done"]), int(told["total"]), str(told["unit"]))
            return
        except (ValueError, KeyError, TypeError):
            pass  # not ours after all: it belongs to the log
    elif raw.startswith(b"@error "):
        try:
            told = json.loads(raw[len(b"@error ") :])
            details = tuple(str(detail) for detail in told["details"])
            outcome.error = Told(str(told["what"]), str(told["hint"]), str(told["code"]), details)
            return
        except (ValueError, KeyError, TypeError):
            pass
    log.write(raw + b"\n")
    outcome.tail.append(raw.decode(errors="replace").rstrip("\r"))
