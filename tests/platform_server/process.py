"""`disk-image platform serve` as a process of its own, with its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.platform_server.conftest import Made

ROOT = Path(__file__).parents[2]
Line = Mapping[str, Any]


@dataclass
class Process:
    """A platform that serves at `url`; its standard error goes to a file."""

    popen: subprocess.Popen[str]
    log: Path
    url: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.popen.send_signal(number)

    def stop(self, seconds: float = 60) -> int:
        """End it as a service manager does; its exit code."""
        self.signal(signal.SIGTERM)
        return self.popen.wait(seconds)

    def lines(self, message: str | None = None, **fields: Any) -> list[Line]:
        """The log so far: every line, or those with that message and these fields."""
        # the last one may be under way
        lines = [json.loads(line) for line in self.log.read_text().split("\n")[:-1]]
        return [
            line
            for line in lines
            if message in (None, line["message"])
            and all(line.get(name) == value for name, value in fields.items())
        ]


_numbers = count()


@contextmanager
def process(
    made: Made,
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[Process]:
    """Serve a platform with these arguments while the block lasts."""
    state = made.folder
    command: list[str | Path] = [
        sys.executable, "-m", "pipelines", "platform", "serve", "--state", state, "--json", "--plain-http",
        "--log-format", "json",
    ]  # fmt: skip
    port: list[str | Path] = [] if "--port" in arguments or "--socket" in arguments else ["--port", "0"]
    database = {"DISK_IMAGE_PLATFORM_DATABASE": made.database} if made.database else {}
    log = state.parent / f"{state.name}.{next(_numbers)}.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, *port, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **database, **(environment or {})},
            pass_fds=pass_fds,
        ) as popen,
    ):
        try:
            assert popen.stdout is not None
            said = popen.stdout.readline()
            assert said, log.read_text()
            yield Process(popen, log, json.loads(said)["url"])
        finally:
            popen.kill()
