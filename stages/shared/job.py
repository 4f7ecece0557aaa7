"""A stage program's side of the executor: where its inputs are, where its outputs go, how it speaks.

Folder layout, the same under every executor (JOB is the program's one argument):

    JOB/job.json          {"name", "source_date_epoch", "params", "accelerators"}
    JOB/transport.json    network stages only: archives, pools, store; in no key
    JOB/in/<input>        a file, or a folder of plain files
    JOB/out/<output>      written by the program
    JOB/cache/<name>/     accelerators: may be empty, must never change a result
    JOB/program/          the program's files; the working directory

Standard output and error are the stage's log, but for lines that start with `@progress ` or `@error `
(JSON follows).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn


class Failure(Exception):
    """A failure with what to do about it. `code` is for the executor, `details` are machine-readable
    items.
    """

    def __init__(self, what: str, hint: str, *, code: str = "failed", details: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.code = code
        self.details = tuple(details)


@dataclass(frozen=True)
class Job:
    """One run of a stage program."""

    folder: Path
    name: str
    source_date_epoch: int
    params: Mapping[str, Any]

    def input(self, name: str) -> Path:
        """The path of a named input (a file, or a folder for inputs of kind `files`)."""
        return self.folder / "in" / name

    def output(self, name: str) -> Path:
        """Where a named output must be written."""
        return self.folder / "out" / name

    def cache(self, name: str) -> Path:
        """An accelerator's folder."""
        path = self.folder / "cache" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def transport(self) -> Mapping[str, Any]:
        """How a network stage reaches archives, pools and store; not part of any key."""
        loaded: Mapping[str, Any] = json.loads((self.folder / "transport.json").read_text())
        return loaded


def progress(done: int, total: int, unit: str = "bytes") -> None:
    """Tell the executor how far the stage is."""
    print("@progress " + json.dumps({"done": done, "total": total, "unit": unit}), flush=True)


def run(argv: Sequence[str], *, hint: str, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a command of the tools tree; its output is the stage's log. A failure names the command and its
    exit code.
    """
    import shlex

    try:
        return subprocess.run(argv, check=True, **options)
    except FileNotFoundError as error:
        raise Failure(
            f"{argv[0]}: not found in the tools tree",
            "add its package to stages/tools.toml, then: disk-image lock --tools",
        ) from error
    except subprocess.CalledProcessError as error:
        raise Failure(f"{shlex.join(argv)}: exit code {error.returncode}", hint) from error


def main(program: Callable[[Job], None]) -> NoReturn:
    """Run `program` on the job folder named on the command line; exit 0, or 1 after one `@error` line."""
    os.umask(0o022)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if len(sys.argv) != 2:
        print("usage: python3 -m stages.NAME JOB_FOLDER", file=sys.stderr)
        raise SystemExit(2)
    folder = Path(sys.argv[1]).absolute()
    loaded = json.loads((folder / "job.json").read_text())
    job = Job(folder, loaded["name"], loaded["source_date_epoch"], loaded["params"])
    try:
        program(job)
    except Failure as failure:
        told = {"what": failure.what, "hint": failure.hint, "code": failure.code, "details": failure.details}
        print("@error " + json.dumps(told), file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    raise SystemExit(0)
