"""distribution, in Debian's version (docker-registry 2.8) or any other: without the referrers API."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.peers.server import serving
from tests.ports import free_port

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
    """Why this machine can't run Debian's; None when it can."""
    if _program() is None:
        return f"{PROGRAM} is neither unpacked nor installed: make test-peers unpacks it"
    return None


def _program() -> str | None:
    return shutil.which(PROGRAM, path=f"{_UNPACKED}:{os.environ['PATH']}")


@contextmanager
def docker_registry(
    folder: Path, program: str | None = None, *, network: Sequence[str] = ()
) -> Iterator[str]:
    """Run Debian's, or `program`, with its storage in `folder`; gives `127.0.0.1:<port>`."""
    address = f"127.0.0.1:{free_port()}"
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(folder=folder / "storage", address=address))
    argv: list[str | Path] = [program or _program() or PROGRAM, "serve", config]
    # Version 3 would send traces to a collector, which is not there.
    env = {"OTEL_TRACES_EXPORTER": "none"}
    with serving(argv, f"http://{address}/v2/", folder / "log", network=network, env=env):
        yield address
