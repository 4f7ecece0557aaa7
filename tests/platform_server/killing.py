"""Orders to killed.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.platform_server.made import Made

SEED = 20260301
# (action, the platform, the moment at which it is killed or 0, more of the order) → what came of it
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

        def order(action: str, state: Made, killed_at: int = 0, **more: Any) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            place = {"folder": str(state.folder), "database": state.database}
            said = {"action": action, **place, "killed_at": killed_at, **more}
            process.stdin.write(json.dumps(said) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            assert "error" not in answer, answer["error"]
            return answer

        yield order
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)
