"""oras, the command."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Oras:
    """The command. It finds logins as Docker does; each method raises CalledProcessError when oras fails."""

    program: str

    def discover(self, ref: str) -> list[dict[str, Any]]:
        """The referrers of `ref`, as oras lists them."""
        told = json.loads(self._run("discover", "--format=json", "--depth=1", ref))
        referrers: list[dict[str, Any]] = told["referrers"]
        return referrers

    def pull(self, ref: str, into: Path) -> None:
        """The layers of `ref` as files named by their titles."""
        self._run("pull", "--output", os.fspath(into), ref)

    def blob(self, ref: str, into: Path) -> bytes:
        """A blob by its digest."""
        self._run("blob", "fetch", "--output", os.fspath(into), ref)
        return into.read_bytes()

    def manifest(self, ref: str) -> bytes:
        """A manifest's bytes."""
        return self._run("manifest", "fetch", ref)

    def _run(self, verb: str, *argv: str) -> bytes:
        done = subprocess.run(
            [self.program, verb, *argv, "--plain-http"],
            capture_output=True,
            timeout=300,
            check=True,
        )
        return done.stdout
