"""Where the server's time goes while it takes deliveries as fast as it can: py-spy looks at its stacks.

A sample counts for the innermost part that a frame of it belongs to. `python` are samples of whoever held
the interpreter's lock (GIL), which one thread has at a time; `writer` are all those of the thread that
writes, in which deliveries wait for the disk. py-spy needs ptrace and costs the server some speed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from bench.platform.figures import table
from bench.platform.intake import CLIENTS
from bench.platform.load import send
from bench.platform.served import Hook, Kind, Served, Site, delivery, serving, webhook

SECONDS = 10
_A_SECOND = 200
_AT_ONCE = 500
_WRITER = "group-commit"
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(?::\d+)?\)")
# whatever a driver does on its behalf
_COMMIT, _COMMITS = "commit", re.compile(r"\bdo_commit \([^;]*/sqlalchemy/")
_OTHER = "the rest"
# The first that fits a frame's file and function; whatever none fits belongs to the frame around it.
_PARTS: Mapping[str, re.Pattern[str]] = {
    "waiting for a delivery": re.compile(r"/platform_server/group_commit\.py .*\b_taken$"),
    "SQL: SQLAlchemy and driver": re.compile(r"/(sqlalchemy|psycopg|psycopg_binary|psycopg_pool)/"),
    "log": re.compile(r"/(logging|structlog)/|/platform_server/logs\.py"),
    "metrics": re.compile(r"/prometheus_client/"),
    "HTTP: uvicorn and h11": re.compile(r"/(h11|uvicorn)/|/platform_server/slow_clients\.py"),
    "ASGI: Starlette, FastAPI, middleware": re.compile(
        r"/(starlette|fastapi)/|/platform_server/(app|limits|proxies|requests)\.py"
    ),
    "turns and transactions": re.compile(r"/platform_server/(database|group_commit|postgres|sqlite)\.py"),
    "the delivery: signature, body, rules, answer": re.compile(r"/platform_server/"),
}


def main(site: Site, runs: int) -> None:
    """One recording of each kind, however many runs are asked for."""
    program = shutil.which("py-spy")
    if program is None:
        raise SystemExit("platform.profile needs py-spy: pip install py-spy in an environment on PATH")
    shares: dict[str, Counter[str]] = {}
    for kind in Kind:
        with ExitStack() as stack:
            served = stack.enter_context(serving(site.home(kind, "profile"), "--workers", "0"))
            hook = webhook(served)
            numbers = count()
            for what, option in ((f"{kind}: python", "--gil"), (f"{kind}: writer", "--idle")):
                file = site.folder / "stacks"
                command = [program, "record", "--pid", str(served.pid), "--output", str(file)]
                command += ["--format", "raw", "--threads", "--full-filenames", "--rate", str(_A_SECOND)]
                recording = subprocess.Popen(
                    [*command, "--duration", str(SECONDS), option],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                _deliver(served, hook, numbers, recording)
                shares[what] = _shares(file, only=_WRITER if option == "--idle" else "")
    print(f"\nprofile: percent of samples, {SECONDS} s each, {CLIENTS} senders")
    parts = [_COMMIT, *_PARTS, _OTHER]
    rows = [[part, *(f"{found[part] / found.total():.0%}" for found in shares.values())] for part in parts]
    table(("", *shares), rows)


def _deliver(platform: Served, hook: Hook, numbers: count[int], recording: subprocess.Popen[str]) -> None:
    """As long as the recording lasts. Raises RuntimeError when it fails."""
    while recording.poll() is None:
        requests = [delivery(hook, next(numbers)) for _ in range(_AT_ONCE)]
        send(platform.port, requests, connections=CLIENTS)
    if recording.returncode:
        assert recording.stdout is not None
        raise RuntimeError(f"py-spy: {recording.stdout.read()}")


def _shares(file: Path, only: str) -> Counter[str]:
    """Samples by part, of threads whose name has `only` in it."""
    found: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if only in thread:
            found[_part(frames)] += int(samples)
    return found


def _part(frames: list[str]) -> str:
    if any(_COMMITS.search(frame) for frame in frames):
        return _COMMIT
    for frame in reversed(frames):
        if (match := _FRAME.fullmatch(frame)) is None:
            continue
        place = f"{match['file']} {match['function']}"
        for name, pattern in _PARTS.items():
            if pattern.search(place):
                return name
    return _OTHER
