"""Sigstore's timestamp authority, with a key in memory. It opens port 2112 on all addresses, so it runs in a
network namespace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.peers.programs import go_program
from tests.peers.server import serving

_URL = "http://127.0.0.1:5830"


@contextmanager
def timestamp_server(folder: Path, network: Sequence[str]) -> Iterator[str]:
    """Run it; gives the URL that takes queries."""
    argv: list[str | Path] = [
        go_program("timestamp-server"), "serve", "--host=127.0.0.1", "--port=5830",
        "--timestamp-signer=memory", "--disable-ntp-monitoring",
    ]  # fmt: skip
    with serving(argv, f"{_URL}/ping", folder / "timestamp-server.log", network=network):
        yield f"{_URL}/api/v1/timestamp"
