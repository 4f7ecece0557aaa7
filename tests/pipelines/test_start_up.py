"""What loading the command costs: modules that a verb does not use stay out."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HEAVY = ("click", "pygments", "sigstore", "dagger", "sqlalchemy", "fastapi")


@pytest.mark.parametrize("module", ["pipelines.commands.push", "pipelines.commands.build"])
def test_a_verb_loads_only_what_it_uses(module: str) -> None:
    look = f"import sys, pipelines.cli, {module}; print(*(name for name in {_HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
