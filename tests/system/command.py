"""The command as users run it: these tests start `disk-image` as a process and read what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supply_chain.beside import build_record_path, sbom_path

ROOT = Path(__file__).parents[2]
# A checkout says another one after each commit, a copy of it none.
COMMIT = "1f" * 20


@dataclass(frozen=True)
class Built:
    """What `build --json` printed, and where the layout is."""

    manifest_digest: str
    composefs_digest: str
    stages: Mapping[str, str]
    layout: Path
    lock: Path
    tools_lock: Path

    @property
    def ran(self) -> list[str]:
        return [name for name, result in self.stages.items() if result == "ran"]

    @property
    def sbom(self) -> bytes:
        """The SBOM beside the layout."""
        return sbom_path(self.layout).read_bytes()

    @property
    def definition(self) -> Any:
        """The build record beside the layout, but for what belongs to one run."""
        record = json.loads(build_record_path(self.layout).read_bytes())
        del record["runDetails"]
        return record


def disk_image(
    *argv: str | Path,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    python: str = sys.executable,
) -> subprocess.CompletedProcess[str]:
    """Run the command; the caller looks at the exit code."""
    full = [*prefix, python, "-m", "pipelines", *(os.fspath(word) for word in argv)]
    return subprocess.run(
        full, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=3000
    )


def build(recipe: Path, output: Path, store: Path, *args: str | Path, **options: Any) -> Built:
    """Build and return what was printed; a failure shows the whole standard error."""
    words = ("--output", output, "--store", store, "--git-sha", COMMIT, "--json")
    done = disk_image("build", recipe, *words, *args, **options)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr}"
    told = json.loads(done.stdout)
    stages = {stage["name"]: stage["result"] for stage in told["stages"]}
    lock, tools_lock = Path(told["lock"]), Path(told["tools_lock"])
    return Built(told["manifest_digest"], told["composefs_digest"], stages, output, lock, tools_lock)


@dataclass(frozen=True)
class OrdinaryUser:
    """A user without privileges, with a copy of the code it can read."""

    name: str
    home: Path
    code: Path
    site_packages: Path

    def prefix(self) -> list[str]:
        return ["setpriv", f"--reuid={self.name}", f"--regid={self.name}", "--init-groups", "--reset-env"]

    def env(self, **more: str) -> list[str]:
        path = f"{self.code}:{self.site_packages}"
        return [
            "env",
            f"HOME={self.home}",
            f"USER={self.name}",
            f"PYTHONPATH={path}",
            *(f"{k}={v}" for k, v in more.items()),
        ]
