"""`disk-image push`: what it prints, with `--dry-run` and `--from` above all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from pipelines.cli import parser
from pipelines.commands import push as command
from pipelines.errors import UsageError
from supply_chain.errors import InvalidReference
from tests.supply_chain.images import noise, write_image
from tests.supply_chain.registry_server import RegistryServer


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layouts `old` and `new`, of which one object of two in one pack of two differs."""
    monkeypatch.chdir(tmp_path)
    bash = [noise("bash", 5000)]
    write_image(tmp_path / "old", {"bash": bash, "libc": [noise("a", 9000), noise("b", 700)]})
    write_image(tmp_path / "new", {"bash": bash, "libc": [noise("a", 9000), noise("c", 800)]})


def _said(capsys: pytest.CaptureFixture[str], server: RegistryServer, *words: str) -> str:
    argv = ["push", *(word.replace("HOST", server.host) for word in words), "--plain-http"]
    assert command.run(parser().parse_args(argv)) == 0
    return capsys.readouterr().out.replace(server.host, "HOST")


def test_a_push_and_both_figures_of_the_next(
    server: RegistryServer, capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    ref = "HOST/os/image:1"
    assert _said(capsys, server, "old", ref) == snapshot(name="push")
    sent = len(server.seen)
    assert _said(capsys, server, "new", ref, "--dry-run") == snapshot(name="dry run")
    of_layout = _said(capsys, server, "new", ref, "--dry-run", "--from", "old")
    assert of_layout == snapshot(name="dry run from a layout")
    of_reference = _said(capsys, server, "new", ref, "--dry-run", "--from", ref)
    assert of_reference == of_layout.replace("has old", f"has {ref}")
    assert {one.method for one in server.seen[sent:]} <= {"HEAD", "GET"}


def test_the_figures_as_json(server: RegistryServer, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(
        _said(capsys, server, "new", "HOST/os/image:1", "--dry-run", "--from", "old", "--json")
    )
    assert told["send_bytes"] == told["total_bytes"] > told["fetch"]["by_pack_bytes"]
    assert told["fetch"]["by_pack_bytes"] > told["fetch"]["by_object_bytes"] > 0
    assert (told["fetch"]["changed_packs"], told["fetch"]["missing_objects"]) == (1, 1)


def test_from_without_a_dry_run(server: RegistryServer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--from is for --dry-run alone"):
        _said(capsys, server, "new", "HOST/os/image:1", "--from", "old")
    assert server.seen == []


def test_from_something_else(server: RegistryServer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidReference):
        _said(capsys, server, "new", "HOST/os/image:1", "--dry-run", "--from", "nowhere")
