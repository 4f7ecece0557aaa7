"""Debian's docker-registry (distribution 2.8) on loopback, and a line to it that breaks on demand."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

PROGRAM = "docker-registry"
# Where scripts/setup unpacks Debian's package: installed, it would start a service.
_UNPACKED = Path(__file__).parents[2] / ".tools" / "debian" / PROGRAM / "usr" / "bin"
_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}
http: {{addr: "{address}", relativeurls: false}}
"""


def missing() -> str | None:
    """Why this machine can't run it; None when it can."""
    if _program() is None:
        return f"{PROGRAM} is neither unpacked nor installed: make test-peers unpacks it"
    return None


def _program() -> str | None:
    return shutil.which(PROGRAM, path=f"{_UNPACKED}:{os.environ['PATH']}")


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def docker_registry(folder: Path) -> Iterator[str]:
    """Run it with its storage in `folder`; gives `127.0.0.1:<port>`."""
    address = f"127.0.0.1:{free_port()}"
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(folder=folder / "storage", address=address))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([_program() or PROGRAM, "serve", config], stdout=log, stderr=log)
        try:
            _wait(process, address, folder / "log")
            yield address
        finally:
            process.terminate()
            process.wait(10)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(URLError, ConnectionError), urlopen(f"http://{address}/v2/", timeout=2):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{PROGRAM} did not start: {log.read_text(errors='replace')[-1000:]}")


@dataclass
class Line:
    """A TCP relay. While `breaks` has entries, each new connection is cut after so many bytes."""

    host: str
    breaks: list[int] = field(default_factory=list)
    broken: int = 0


@contextmanager
def breaking_line(address: str) -> Iterator[Line]:
    """Relay to `address`; the line's `host` is what clients use."""
    listener = socket.create_server(("127.0.0.1", 0))
    line = Line(f"127.0.0.1:{listener.getsockname()[1]}")
    host, _, port = address.rpartition(":")

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.create_connection((host, int(port)))
            least = line.breaks.pop(0) if line.breaks else None
            for job in ((client, upstream, least), (upstream, client, None)):
                threading.Thread(target=_relay, args=(line, *job), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield line
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _relay(line: Line, source: socket.socket, target: socket.socket, most: int | None) -> None:
    left = most
    with suppress(OSError):
        while piece := source.recv(65536 if left is None else min(65536, left)):
            target.sendall(piece)
            if left is not None:
                left -= len(piece)
                if left == 0:
                    line.broken += 1
                    break
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        if most is None:
            end.close()
