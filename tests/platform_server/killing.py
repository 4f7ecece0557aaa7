"""Orders to killed.py, and the state that it works on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from platform_server.state_folder import Platform

SEED = 20260301
# (action, folder, the moment at which it is killed or 0, more of the order) → what came of it
Kill = Callable[..., dict[str, Any]]


@contextmanager
def killing() -> Iterator[Kill]:
    """Gives orders to killed.py, one after the other."""
    program = Path(__file__).with_name("killed.py")
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:

        def order(action: str, folder: Path, killed_at: int = 0, **more: Any) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            said = {"action": action, "folder": str(folder), "killed_at": killed_at, **more}
            process.stdin.write(json.dumps(said) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            assert "error" not in answer, answer["error"]
            return answer

        yield order
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def copied(folder: Path, to: Path) -> Path:
    """A state folder once more, in place of what is there."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to


def at_rest(platform: Platform) -> Path:
    """The state with nothing in the write-ahead log, so that it can be copied."""
    platform.database.close()
    return platform.folder
