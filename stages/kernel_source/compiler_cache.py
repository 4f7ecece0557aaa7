"""ccache(1) as an accelerator: it may be absent, empty or broken, and then the build is only slower."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from stages.shared.job import run

_COMPILER = "gcc"
_PARTS = ("cc1", "as", "collect2")


def compiler(folder: Path, source: Path) -> tuple[str, dict[str, str]]:
    """What make's CC shall be, and the environment it needs; gcc alone when ccache can't use `folder`."""
    if shutil.which("ccache") is None:
        print("no ccache in the tools tree: compiling without a cache")
        return _COMPILER, {}
    environment = {
        "CCACHE_DIR": os.fspath(folder),
        # No file of the machine or the folder has a say.
        "CCACHE_CONFIGPATH": os.devnull,
        "CCACHE_COMPILERCHECK": f"string:{_identity()}",
        "CCACHE_BASEDIR": os.fspath(source),
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_MAXSIZE": "1G",
        "CCACHE_TEMPDIR": "/tmp/ccache",
    }
    if not _works(environment):
        print("ccache does not work in the cache folder: compiling without a cache")
        return _COMPILER, {}
    return f"ccache {_COMPILER}", environment


def _identity() -> str:
    """sha256 over all that makes objects: ccache by itself looks at gcc's driver, which compiles nothing."""
    digest = hashlib.sha256()
    paths = [shutil.which(_COMPILER) or _COMPILER]
    for part in _PARTS:
        named = run(
            [_COMPILER, f"-print-prog-name={part}"],
            hint="look at the kernel's tools set",
            capture_output=True,
            text=True,
        ).stdout.strip()
        paths.append(shutil.which(named) or named)
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _works(environment: dict[str, str]) -> bool:
    """Compile an empty file through ccache."""
    tried = subprocess.run(
        ["ccache", _COMPILER, "-c", "-x", "c", os.devnull, "-o", "/tmp/ccache-probe.o"],
        env={"PATH": os.environ["PATH"], **environment},
        check=False,
    )
    return tried.returncode == 0
