"""Python sources as bytecode whose bytes depend on the source and the Python version only (PEP 552).

Each file is compiled by a fresh interpreter: marshal writes an object that two files share differently from
one that only one file has, so that in one process the result would depend on what was compiled before.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from stages.shared.job import Failure

_COMPILE = """
import py_compile, sys
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
py_compile.compile(sys.argv[1], sys.argv[2], sys.argv[3], doraise=True, optimize=2, invalidation_mode=mode)
"""


def compile_all(sources: Mapping[str, bytes], python: str) -> dict[str, bytes]:
    """Relative `.py` paths and sources become `.pyc` paths and bytecode, which Python imports without the
    source.

    Raises Failure unless this interpreter is the runtime's version (`python3.13`), and for a source that
    doesn't compile.
    """
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if own != python:
        raise Failure(
            f"the initramfs holds {python}, expected {own}, which compiles its modules",
            "lock recipe and tools from the same suite",
        )
    return {path + "c": _compile(path, content) for path, content in sorted(sources.items())}


def _compile(path: str, content: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.py"), Path(folder, "target.pyc")
        source.write_bytes(content)
        argv = [sys.executable, "-s", "-S", "-B", "-c", _COMPILE, str(source), str(target), f"/{path}"]
        done = subprocess.run(argv, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise Failure(f"/{path}: does not compile: {last}", "correct the source")
        return target.read_bytes()
