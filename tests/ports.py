"""Ports for programs that are told one, and can't choose a free one themselves."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on, and that the kernel gives nobody until it is taken: tests
    run side by side, and each connection and each server that may have any port gets one of the others.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = 10_000 + secrets.randbelow(max(first - 10_000, 1_000))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
