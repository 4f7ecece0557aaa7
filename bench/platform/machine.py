"""What the machine says of processes and disks (proc(5))."""

from __future__ import annotations

import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pid: int, *, children: bool = False) -> float:
    """Seconds of CPU that a process has used; with `children`, also those that it started, ended or not."""
    parent, own, ended = _stat(pid)
    if not children:
        return own
    running = 0.0
    for each in Path("/proc").glob("[0-9]*"):
        try:
            parent, used, _ = _stat(int(each.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
        running += used if parent == pid else 0.0
    return own + ended + running


def _stat(pid: int) -> tuple[int, float, float]:
    """The parent, and the seconds of the process itself and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, ended = (int(fields[at]) + int(fields[at + 1]) for at in (11, 13))
    return int(fields[1]), own / _TICKS, ended / _TICKS


def resident_mib(pid: int) -> float:
    """Its resident set."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            return int(value.split()[0]) / 1024
    raise ProcessLookupError(f"{pid} has ended")


def described() -> str:
    """Date, Python, cores, load, and where the data is: on tmpfs a commit waits for nothing."""
    folder = Path(tempfile.gettempdir()).resolve()
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    # the longest mount point that the folder is below; of equal ones the last counts
    _, kind = max(
        (len(Path(point).parts), kind) for _, point, kind, *_ in mounts if folder.is_relative_to(point)
    )
    cores = len(os.sched_getaffinity(0))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {cores} cores, "
        f"load {os.getloadavg()[0]:.1f} before; data of both databases in {folder} on {kind}"
    )
