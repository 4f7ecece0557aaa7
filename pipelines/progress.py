"""What a person sees while stages run: live lines on a terminal, plain lines elsewhere, nothing when asked.

Everything goes to standard error; standard output belongs to the command's result.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress, TaskID

    from pipelines.local import StageResult

# Seconds over which a rate is measured, and between two plain lines of one stage's progress.
_RATE_WINDOW = 5.0
_PLAIN_INTERVAL = 15.0


class Reporter(Protocol):
    """How a run tells what it does. Stages are named; sizes are bytes, times seconds."""

    def started(self, stage: str, why: str) -> None:
        """A stage begins to run."""

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """How far a stage is, in its own unit (`bytes` gets rates and times)."""

    def note(self, text: str) -> None:
        """Something a person should know that is no failure."""

    def finished(self, result: StageResult) -> None:
        """A stage ran, or was found in the store."""

    def failed(self, stage: str, log: Path, tail: Sequence[str], rerun: str | None) -> None:
        """A stage failed: its log's place and last lines, and the command that reruns it alone."""

    def close(self, results: Sequence[StageResult] | None = None) -> None:
        """The run is over: `results` for the table of a finished one."""


class Silent:
    """Says nothing."""

    def started(self, stage: str, why: str) -> None:
        """Nothing."""

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def finished(self, result: StageResult) -> None:
        """Nothing."""

    def failed(self, stage: str, log: Path, tail: Sequence[str], rerun: str | None) -> None:
        """Nothing."""

    def close(self, results: Sequence[StageResult] | None = None) -> None:
        """Nothing."""


class Plain:
    """One line an event, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._meters: dict[str, Meter] = {}
        self._told: dict[str, float] = {}

    def started(self, stage: str, why: str) -> None:
        """`stage kernel: input fragment-0000 changed …: running`."""
        self._told[stage] = time.monotonic()
        self._say(f"stage {stage}: {why}: running")

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """A line now and then."""
        meter = self._meters.setdefault(stage, Meter())
        meter.add(done, time.monotonic())
        if time.monotonic() - self._told.get(stage, 0.0) >= _PLAIN_INTERVAL:
            self._told[stage] = time.monotonic()
            self._say(f"stage {stage}: {meter.text(done, total, unit)}")

    def note(self, text: str) -> None:
        """The text as it is."""
        self._say(text)

    def finished(self, result: StageResult) -> None:
        """`stage composefs: ran in 1.2 s, 800 kB`; what is cached is in the table alone."""
        if result.result == "ran":
            self._say(f"stage {result.name}: ran in {seconds(result.seconds)}, {size(result.size)}")

    def failed(self, stage: str, log: Path, tail: Sequence[str], rerun: str | None) -> None:
        """The log's last lines, its place, the command."""
        self._say(f"stage {stage}: failed; the last lines of {log}:")
        for line in tail:
            self._say(f"    {line}")
        if rerun is not None:
            self._say(f"to run it alone: {rerun}")

    def close(self, results: Sequence[StageResult] | None = None) -> None:
        """The table, or one line when nothing ran."""
        if results is not None:
            for line in table(results):
                self._say(line)

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class Terminal(Plain):
    """One live line for each running stage, finished ones above them."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def started(self, stage: str, why: str) -> None:
        """A live line appears."""
        self._tasks[stage] = self._start().add_task(stage, total=None, told=why)

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """The live line moves."""
        if stage in self._tasks:
            meter = self._meters.setdefault(stage, Meter())
            meter.add(done, time.monotonic())
            self._start().update(
                self._tasks[stage], completed=done, total=total or None, told=meter.text(done, total, unit)
            )

    def finished(self, result: StageResult) -> None:
        """The live line goes, a plain one stays."""
        if self._live is not None and result.name in self._tasks:
            self._live.remove_task(self._tasks.pop(result.name))
        super().finished(result)

    def failed(self, stage: str, log: Path, tail: Sequence[str], rerun: str | None) -> None:
        """The live lines go, the log stays."""
        self._stop()
        super().failed(stage, log, tail, rerun)

    def close(self, results: Sequence[StageResult] | None = None) -> None:
        """The live lines go, the table stays."""
        self._stop()
        super().close(results)

    def _start(self) -> Progress:
        if self._live is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TimeElapsedColumn(),
                TextColumn("{task.fields[told]}", markup=False),
                console=Console(file=self._stream),
                transient=True,
            )
            self._live.start()
        return self._live

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._tasks.clear()

    def _say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            super()._say(text)


class Meter:
    """The rate of something that grows, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, done: int, now: float) -> None:
        """`done` at the time `now`, in seconds of any clock."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _RATE_WINDOW:
            self._seen.popleft()

    def rate(self) -> float:
        """Units a second; 0 before it is known."""
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def text(self, done: int, total: int, unit: str) -> str:
        """`12.0 MB of 80.0 MB, 6.1 MB/s, 11 s left`, or `3 of 9 files`."""
        if unit != "bytes":
            return f"{done} of {total} {unit}"
        parts = [f"{size(done)} of {size(total)}"]
        if (rate := self.rate()) > 0:
            parts.append(f"{size(int(rate))}/s")
            if done < total:
                parts.append(f"{seconds((total - done) / rate, whole=True)} left")
        return ", ".join(parts)


def reporter(stream: TextIO | None = None) -> Reporter:
    """Live lines where `stream` (standard error) is a terminal, plain ones elsewhere."""
    stream = stream or sys.stderr
    return Terminal(stream) if stream.isatty() else Plain(stream)


def table(results: Sequence[StageResult]) -> list[str]:
    """One line a stage (ran or cached, seconds, size), or one line in all when nothing ran."""
    if all(result.result == "cached" for result in results):
        return [f"nothing changed: {len(results)} stages cached"]
    rows = [("stage", "result", "time", "size")]
    rows += [
        (one.name, one.result, seconds(one.seconds) if one.result == "ran" else "-", size(one.size))
        for one in results
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}"
        for row in rows
    ]


def size(count: int) -> str:
    """Bytes in decimal units (IEC 80000-13), three digits: `800 B`, `12.3 MB`."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{count} B"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def seconds(duration: float, *, whole: bool = False) -> str:
    """`0.4 s`, `12.0 s`, `3 min 20 s`, `1 h 02 min`."""
    if duration < 59.95 and not whole:
        return f"{duration:.1f} s"
    total = round(duration)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"
