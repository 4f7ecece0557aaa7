"""The platform's tutorial, followed as written in one shell, but for two ports and its line of builds: small
images stand where that would have put them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from supply_chain.beside import build_record_path
from tests.ports import free_port
from tests.supply_chain.publish.builds import built
from tests.supply_chain.registry_server import registry
from tests.supply_chain.verify.signed_image import COMMIT

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(300)


def commands() -> list[str]:
    """Every `$` line of the page."""
    text = (ROOT / "docs/tutorial/publish-to-a-platform.md").read_text()
    return re.findall(r"^\$ (.*)$", "\n".join(re.findall(r"```console\n(.*?)```", text, re.S)), re.M)


def build(out: Path) -> None:
    """Three images of three commits."""
    for number in "123":
        layout = built(out / f"image-{number}", f"image {number}")
        record = build_record_path(layout.folder)
        record.write_bytes(record.read_bytes().replace(COMMIT.encode(), (number * 40).encode()))


def objects(text: str) -> list[dict[str, Any]]:
    """Every JSON object that was printed."""
    found, decoder, position = [], json.JSONDecoder(), 0
    while (position := text.find("{", position)) >= 0:
        value, position = decoder.raw_decode(text, position)
        found.append(value)
    return found


def answered(said: list[dict[str, Any]], field: str) -> list[Any]:
    """That field of every answer that has it."""
    return [each["data"][field] for each in said if field in each.get("data", {})]


def test_publish_to_a_platform(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    build(tmp_path / "out")
    written = commands()
    followed = [command for command in written if "disk-image build" not in command]
    assert len(written) == len(followed) + 1
    script = "\n".join(["set -e", "trap 'kill $! 2>/dev/null || true' EXIT", *followed])
    with registry() as server:
        script = script.replace("127.0.0.1:5000", server.host).replace("8000", str(free_port()))
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=240,
        )
    log = tmp_path / "platform.log"
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{log.read_text() if log.exists() else ''}"

    said = objects(done.stdout)
    answers = [each["status"] for each in said if "publication_id" in each]
    assert answers == ["queued", "idempotent_hit"]
    listed = [
        each["data"]["disk_image_publications"]
        for each in said
        if "disk_image_publications" in each.get("data", {})
    ]
    everything, retired = listed
    assert [row["git_sha"] for row in everything] == ["3" * 40, "2" * 40, "1" * 40]
    assert [row["is_default"] for row in everything] == [False, False, True]
    assert all(row["cosign_verified"] and row["status"] == "published" for row in everything)
    assert {row["certificate_identity"] for row in everything} == {"ci@example.com"}
    assert [row["git_sha"] for row in retired] == ["1" * 40]
    assert answered(said, "disk_image_retention_count") == [5, 1]
    digest = everything[1]["oci_digest"]
    assert answered(said, "oci_ref")[-1] == f"{server.host}/os/quick@{digest}"
    swept = answered(said, "events")[-1]
    assert [each["payload"]["publication_id"] for each in swept] == [everything[2]["id"]]
