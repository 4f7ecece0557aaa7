"""`make run` twice: built, signed, pushed, verified, published as the default, booted; then nothing anew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.docker_registry import missing
from tests.system.command import ROOT

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.boot,
    pytest.mark.network,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def _run(output: Path, store: Path) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "run.py", "recipes/quick", output],
        cwd=ROOT, env={**os.environ, "DISK_IMAGE_STORE": os.fspath(store)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_the_whole_loop_and_once_more(tmp_path: Path, warm_store: Path) -> None:
    told, said = _run(tmp_path / "out" / "quick", warm_store)
    (built,) = re.findall(r"^composefs digest  (sha256:[0-9a-f]{64})$", told, re.M)
    (image,) = re.findall(r"^manifest digest   (sha256:[0-9a-f]{64})$", told, re.M)
    assert re.search(r"^status       published$", told, re.M)
    assert re.search(r"^default      yes$", told, re.M)
    assert re.search(rf"^image        127[.]0[.]0[.]1:[0-9]+/disk-images/quick@{image}$", told, re.M)
    assert f"disk-image: root verified {built}" in told
    (publication,) = re.findall(r"^publication  (.*)$", told, re.M)

    again, said = _run(tmp_path / "out" / "quick", warm_store)
    assert re.findall(r"^publication  (.*)$", again, re.M) == [publication]
    assert "signed before as" in said
    assert "pushed: 0 bytes sent" in said
