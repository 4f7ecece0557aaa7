"""The tutorial, followed as written: each `$` line in order, in a checkout of the recipes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from secrets import token_hex

import pytest

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.network,
    pytest.mark.boot,
    pytest.mark.timeout(1800),
]
ROOT = Path(__file__).parents[2]


def test_first_image(tmp_path: Path, warm_store: Path) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    for command in (["init"], ["add", "recipes"], ["commit", "-m", "recipes"]):
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True, capture_output=True)
    said: list[tuple[str, str]] = []
    text = (ROOT / "docs" / "tutorial" / "first-image.md").read_text()
    commands = re.findall(r"^\$ (.*)$", "\n".join(re.findall(r"```console\n(.*?)```", text, re.S)), re.M)
    for written in commands:
        # a text of its own in each run: the store may have an image with the last one
        command = written.replace("my own image", f"my own image, {token_hex(8)}")
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env={**os.environ, "DISK_IMAGE_STORE": os.fspath(warm_store)},
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said.append((command, done.stdout))

    builds = [out for command, out in said if "disk-image build" in command]
    digests = [re.findall(r"sha256:[0-9a-f]{64}", out) for out in builds]
    first, unchanged, changed, back = digests
    assert unchanged == first
    assert changed != first
    assert back == first
    (booted,) = (out for command, out in said if "disk-image boot" in command)
    assert f"disk-image: root verified {first[1]}" in booted
    (why,) = (out for command, out in said if "disk-image explain" in command)
    assert re.search(r"^rootfs +runs +.*file-0000", why, re.M), why
    assert re.search(r"^packages +cached", why, re.M), why
    (verified,) = (out for command, out in said if "disk-image verify" in command)
    assert f"is {first[0]}" in verified
