"""The Dagger module with nothing changed: a whole `dagger call` against one of a function that does nothing.

Also what ran after one file of the initramfs changed, here and locally. `DISK_IMAGE_TEST_BASE` names the
bootstrap image where the engine can't pull the pinned one. Needs an engine (docs/how-to/dagger.md); works in
a copy of the project.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.measure import Command, in_turn, report

PROJECT = Path(__file__).resolve().parent.parent
ROOMS = ("pipelines", "stages", "initramfs", "supply_chain", "recipes")
FILES = ("dagger.json", "pyproject.toml", "uv.lock", "README.md", "LICENSE")
EXTRA_SECONDS = 0.5


def main(runs: int) -> None:
    """Print both comparisons."""
    with tempfile.TemporaryDirectory(prefix="bench-dagger-") as folder:
        copy = Path(folder, "project")
        _copied(copy)
        _unchanged(copy, runs)
        _changed(copy, Path(folder))


def _unchanged(copy: Path, runs: int) -> None:
    cli = os.environ.get("_EXPERIMENTAL_DAGGER_CLI_BIN") or "dagger"
    base = ("--base", os.environ["DISK_IMAGE_TEST_BASE"]) if "DISK_IMAGE_TEST_BASE" in os.environ else ()
    # `plan` is the least that takes a recipe; both are answered as functions, without a container.
    calls = {
        "nothing (plan)": [cli, "--progress=plain", "call", *base, "plan", "--recipe", "recipes/quick"],
        "build": [cli, "--progress=plain", "call", *base, "build", "--recipe", "recipes/quick", "sync"],
    }
    for argv in calls.values():
        subprocess.run(argv, cwd=copy, check=True, capture_output=True)
    trace = subprocess.run(calls["build"], cwd=copy, check=True, capture_output=True, text=True).stderr
    commands = [Command(name, lambda index, argv=argv: argv, cwd=copy) for name, argv in calls.items()]  # type: ignore[misc]
    report(
        "dagger call, nothing changed",
        in_turn(commands, runs),
        "build",
        "nothing (plan)",
        f"no container ran (here: {executed(trace)}); at most {EXTRA_SECONDS} s more",
    )


def executed(trace: str) -> int:
    """How many containers ran, by the CLI's plain trace."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", trace)
    return len(re.findall(r"Container\.withExec (?:DONE|ERROR)", plain))


def _changed(copy: Path, folder: Path) -> None:
    init = copy / "initramfs" / "main.py"
    ran: dict[str, list[str]] = {}
    for executor in ("local", "dagger"):
        _build(copy, folder / executor, executor)
    init.write_text(init.read_text() + "# changed\n")
    for executor in ("local", "dagger"):
        stages = _build(copy, folder / executor, executor)["stages"]
        ran[executor] = [stage["name"] for stage in stages if stage["result"] == "ran"]
    print("\none file of the initramfs changed: stages that ran")
    for executor, names in ran.items():
        print(f"  {executor:<8}{', '.join(names)}")
    if ran["local"] != ran["dagger"]:
        raise SystemExit("the executors ran different stages")


def _build(copy: Path, store: Path, executor: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "pipelines", "build", "recipes/quick", "--json", "--store", str(store)]
    argv += ["--executor", executor]
    if executor == "dagger" and "DISK_IMAGE_TEST_BASE" in os.environ:
        argv += ["--base", os.environ["DISK_IMAGE_TEST_BASE"]]
    done = subprocess.run(argv, cwd=copy, stdout=subprocess.PIPE, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _copied(copy: Path) -> None:
    for room in ROOMS:
        shutil.copytree(PROJECT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copyfile(PROJECT / file, copy / file)
    if base := os.environ.get("DISK_IMAGE_TEST_BASE"):
        with (copy / "pyproject.toml").open("a") as stream:
            stream.write(f'\n[tool.dagger]\nbase-image = "{base}"\n')
