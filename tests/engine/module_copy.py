"""The Dagger module as users call it, from a copy whose Python runs in the test's base image."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from pipelines.sources import PROJECT

ROOMS = ("pipelines", "stages", "initramfs", "supply_chain", "platform_client", "platform_server", "recipes")
FILES = ("dagger.json", "pyproject.toml", "uv.lock", "README.md", "LICENSE")
TEST_BASE = os.environ.get("DISK_IMAGE_TEST_BASE")
# One copy for all tests that use it, so that the engine loads it once.
LOADING = 900


def copy_module(folder: Path) -> None:
    """Write the module's copy into `folder`."""
    for room in ROOMS:
        shutil.copytree(PROJECT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copyfile(PROJECT / file, folder / file)
    if TEST_BASE:
        with (folder / "pyproject.toml").open("a") as stream:
            stream.write(f'\n[tool.dagger]\nbase-image = "{TEST_BASE}"\n')


def dagger(module: Path, *words: str, code: int = 0) -> str:
    """What the CLI prints, without colours; for a failure, what it says."""
    done = run_dagger(module, "-s", *words)
    assert done.returncode == code, done.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout if code == 0 else done.stderr)


def run_dagger(module: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the CLI in the module's folder."""
    cli = os.environ.get("_EXPERIMENTAL_DAGGER_CLI_BIN") or "dagger"
    return subprocess.run([cli, *words], cwd=module, capture_output=True, text=True, timeout=LOADING)
