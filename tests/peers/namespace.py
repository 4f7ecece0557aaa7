"""A network namespace that has nothing but a loopback interface.

Some servers open a port on every address, whatever they are told; in here that is loopback too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# SIOCSIFFLAGS of <linux/sockios.h>, IFF_UP of <linux/if.h>.
_HOLDER = """\
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 1))
print("up", flush=True)
sys.stdin.read()
"""


@contextmanager
def loopback_only() -> Iterator[tuple[str, ...]]:
    """Gives how a command in it begins. It needs root or user namespaces; else the test is skipped."""
    root = os.geteuid() == 0
    unshare = ["unshare", "--net"] if root else ["unshare", "--user", "--map-root-user", "--net"]
    holder = subprocess.Popen(
        [*unshare, sys.executable, "-c", _HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            if holder.stdout.readline() != "up\n":
                pytest.skip(f"no network namespace can be made here: {holder.stderr.read().strip()}")
            enter = ("nsenter", f"--target={holder.pid}", "--net")
            yield enter if root else (*enter, "--user", "--preserve-credentials")
        finally:
            holder.stdin.close()
            holder.wait(20)
