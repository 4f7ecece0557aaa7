"""What the serial console says about a boot, line by line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>78cM]|[\x00-\x08\x0b-\x1f\x7f]")
_VERIFIED = re.compile(r"disk-image: root verified sha256:([0-9a-f]{64})")
_REFUSED = re.compile(r"disk-image: refused: (.*)")
_PANIC = re.compile(r"Kernel panic - not syncing: (.*)")
# systemd's status line: «[  OK  ] Reached target multi-user.target - Multi-User System.»
MULTI_USER = re.compile(r"Reached target (?:multi-user\.target|Multi-User System)")


class Result(StrEnum):
    """How a boot ended."""

    BOOTED = "booted"
    REFUSED = "refused"
    PANIC = "panic"


@dataclass(slots=True)
class Console:
    """A state machine over the console's bytes. `reached` is the line that ends a boot, after the root was
    verified.

    `verified` is the digest the guest measured, once it said so; only its first word on it counts, since
    what runs after that can print the same line. `result` and `reason` are set when the boot has ended.
    """

    reached: re.Pattern[str] = MULTI_USER
    verified: str | None = None
    result: Result | None = None
    reason: str = ""
    _rest: bytes = b""

    def feed(self, data: bytes) -> list[str]:
        """Take what the console wrote; returns the lines it completed, without control sequences."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        lines = [_CONTROL.sub("", line.decode("utf-8", "replace")) for line in complete]
        for line in lines:
            if self.result is None:
                self._take(line)
        return lines

    def _take(self, line: str) -> None:
        if self.verified is None and (found := _VERIFIED.search(line)):
            self.verified = found[1]
        elif found := _REFUSED.search(line):
            self.result, self.reason = Result.REFUSED, found[1].strip()
        elif found := _PANIC.search(line):
            self.result, self.reason = Result.PANIC, found[1].strip()
        elif self.verified is not None and (found := self.reached.search(line)):
            self.result, self.reason = Result.BOOTED, found[0]
