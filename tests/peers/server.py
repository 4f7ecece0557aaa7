"""A server program: started in a network, waited for, ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# Any answer will do, also one that refuses.
_PROBE = """\
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=2)
except urllib.error.HTTPError:
    pass
except OSError:
    sys.exit(1)
"""


@contextmanager
def serving(
    argv: Sequence[str | Path],
    url: str,
    log: Path,
    *,
    network: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    seconds: float = 60,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `argv` until the block ends; the block begins when `url` answers.

    `network` is how a command in the server's network begins. Raises RuntimeError with the end of the log
    when it does not answer within `seconds`.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*network, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
        )
        try:
            _wait(process, [*network, sys.executable, "-c", _PROBE, url], log, seconds)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


def _wait(process: subprocess.Popen[bytes], probe: Sequence[str], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if subprocess.run(probe, stdin=subprocess.DEVNULL, timeout=60).returncode == 0:
            return
        time.sleep(0.05)
    ended = "" if process.returncode is None else f" (exit code {process.returncode})"
    said = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{process.args!r} did not start within {seconds:.0f} s{ended}:\n{said}")
