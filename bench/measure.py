"""Time whole commands in turn (A B A B …), so that a machine whose speed drifts treats both alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One run: seconds, and the largest resident set of any single process it waited for, in MiB."""

    wall: float
    cpu: float
    peak_mib: float


@dataclass(frozen=True)
class Command:
    """What to run; `prepare` runs before each sample and is not timed."""

    name: str
    argv: Callable[[int], Sequence[str]]
    prepare: Callable[[int], None] = lambda index: None
    env: Mapping[str, str] | None = None
    cwd: Path | None = None


def run_once(command: Command, index: int) -> Sample:
    """Run and account for one sample; a command that fails ends the benchmark with its output."""
    command.prepare(index)
    env = {**os.environ, **(command.env or {})}
    started = time.monotonic()
    process = subprocess.Popen(
        command.argv(index), env=env, cwd=command.cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - started
    if process.returncode != 0:
        raise SystemExit(
            f"{command.name}: exit code {process.returncode}\n{output.decode(errors='replace')[-4000:]}"
        )
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def in_turn(commands: Sequence[Command], runs: int) -> Mapping[str, list[Sample]]:
    """`runs` samples of each command, interleaved."""
    samples: dict[str, list[Sample]] = {command.name: [] for command in commands}
    for index in range(runs):
        for command in commands:
            samples[command.name].append(run_once(command, index))
    return samples


def report(
    title: str, samples: Mapping[str, list[Sample]], ours: str, theirs: str | None, goal: str
) -> None:
    """Median and range of each command, and the ratio pair by pair."""
    print(f"\n{title}")
    print(f"  {'command':<34}{'wall s: median':>15}{'min':>8}{'max':>8}{'cpu s':>8}{'peak MiB':>10}")
    for name, rows in samples.items():
        wall = sorted(sample.wall for sample in rows)
        cpu = statistics.median(sample.cpu for sample in rows)
        peak = max(sample.peak_mib for sample in rows)
        spread = f"{statistics.median(wall):>15.2f}{wall[0]:>8.2f}{wall[-1]:>8.2f}"
        print(f"  {name:<34}{spread}{cpu:>8.2f}{peak:>10.0f}")
    if theirs is not None:
        ratios = sorted(a.wall / b.wall for a, b in zip(samples[ours], samples[theirs], strict=True))
        print(
            f"  ratio {ours} / {theirs}: median {statistics.median(ratios):.2f}"
            f" (min {ratios[0]:.2f}, max {ratios[-1]:.2f}, {len(ratios)} pairs)"
        )
    print(f"  goal: {goal}")
