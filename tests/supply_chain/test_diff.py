"""disk-image diff: what is printed of two images, and what can't be compared."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest
from syrupy.assertion import SnapshotAssertion

from pipelines.cli import parser
from pipelines.commands import diff as command
from pipelines.definition import Json, canonical_json
from pipelines.errors import DiskImageError
from stages.shared import purl
from supply_chain.beside import sbom_path
from supply_chain.errors import InvalidDocument, LayoutError
from supply_chain.layout import Layout
from supply_chain.push import push
from supply_chain.statement import PROVENANCE, SBOM, statement_bytes
from tests.supply_chain import roots
from tests.supply_chain.images import hang, noise, write_image
from tests.supply_chain.registry_server import RegistryServer

BEFORE = {"bash": "5.2-1", "libc6": "2.41-1", "rebuilt": "1:1.0~rc1+b1", "gone": "1"}
AFTER = {"bash": "5.2-2", "libc6": "2.41-1", "rebuilt": "1:1.0~rc1+b1", "new": "3"}


def _sbom(image: str, packages: Mapping[str, str], rebuilt: str = "") -> bytes:
    elements: list[Json] = [{"SPDXID": "SPDXRef-Image", "name": "i", "checksums": _sha256(image)}]
    relations = [_relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image")]
    for name, version in packages.items():
        reference = {"referenceType": "purl", "referenceLocator": purl.deb(name, version, "amd64")}
        digest = name.encode().hex().ljust(64, "0") if name != "rebuilt" else rebuilt.ljust(64, "0")
        elements.append(
            {
                "SPDXID": f"SPDXRef-{name}",
                "name": name,
                "versionInfo": version,
                "checksums": _sha256(digest),
                "externalRefs": [reference],
            }
        )
        relations.append(_relation("SPDXRef-Image", "CONTAINS", f"SPDXRef-{name}"))
    return canonical_json(
        {
            "spdxVersion": "SPDX-2.3",
            "SPDXID": "SPDXRef-DOCUMENT",
            "packages": elements,
            "relationships": relations,
        }
    )


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"algorithm": "SHA256", "checksumValue": digest}]


def _relation(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}


def before(folder: Path) -> Layout:
    """The older image, with its SBOM beside it."""
    objects = {"00": [noise("bash 5.2-1", 900)], "01": [noise("libc6", 700)], "02": [noise("gone", 100)]}
    layout = write_image(folder, objects, metadata=roots.asset("before"))
    sbom_path(folder).write_bytes(_sbom(layout.image.hex, BEFORE, rebuilt="0a"))
    return layout


def after(folder: Path) -> Layout:
    """The newer image, with its SBOM beside it."""
    objects = {"00": [noise("bash 5.2-2", 950)], "01": [noise("libc6", 700)], "03": [noise("new", 300)]}
    layout = write_image(folder, objects, b"newer kernel", metadata=roots.asset("after"))
    sbom_path(folder).write_bytes(_sbom(layout.image.hex, AFTER, rebuilt="0b"))
    return layout


def _said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert command.run(parser().parse_args(["diff", *map(str, words)])) == 0
    return capsys.readouterr().out


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders `before` and `after`, in the working directory so that no path of the machine is shown."""
    monkeypatch.chdir(tmp_path)
    before(tmp_path / "before")
    after(tmp_path / "after")
    return tmp_path


@pytest.mark.usefixtures("images")
def test_what_is_printed(capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion) -> None:
    assert _said(capsys, "before", "after") == snapshot(name="text")
    told = json.loads(_said(capsys, "before", "after", "--json"))
    assert json.dumps(told, indent=1) == snapshot(name="json")


@pytest.mark.usefixtures("images")
def test_an_image_does_not_differ_from_itself(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(_said(capsys, "before", "before", "--json"))
    assert (told["packages"], told["files"], told["times"], told["layers"]) == ([], [], 0, [])


def _attach(layout: Layout, sbom: bytes, kind: str = SBOM, image: str | None = None) -> Layout:
    statement = statement_bytes(image or layout.image.digest, kind, json.loads(sbom))
    envelope = {"payload": base64.b64encode(statement).decode(), "payloadType": "x", "signatures": []}
    return hang(layout, canonical_json({"dsseEnvelope": envelope}))


def test_a_pushed_image_with_an_attached_sbom(
    images: Path, server: RegistryServer, capsys: pytest.CaptureFixture[str]
) -> None:
    _push(images, server)
    told = json.loads(_said(capsys, "before", f"{server.host}/os/image:1", "--plain-http", "--json"))
    local = json.loads(_said(capsys, "before", "after", "--json"))
    assert {**told, "after": None} == {**local, "after": None}


def _push(images: Path, server: RegistryServer) -> None:
    layout = after(images / "pushed")
    sbom = sbom_path(layout.folder).read_bytes()
    _attach(_attach(layout, b'{"some": "provenance"}', PROVENANCE), sbom)
    anyio.run(lambda: push(layout.folder, f"{server.host}/os/image:1", plain_http=True))


def test_an_image_without_an_sbom(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sbom_path(images / "after").unlink()
    with pytest.raises(InvalidDocument, match=r"after: expected one SBOM beside it .*, found 0"):
        _said(capsys, "before", "after")


def test_sboms_of_two_minds(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = after(images / "two")
    sbom_path(layout.folder).unlink()
    hung = _attach(layout, _sbom(layout.image.hex, AFTER))
    _attach(hung, _sbom(layout.image.hex, BEFORE))
    with pytest.raises(InvalidDocument, match="found 2"):
        _said(capsys, "before", "two")


def test_an_sbom_of_another_image(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sbom_path(images / "after").write_bytes(sbom_path(images / "before").read_bytes())
    with pytest.raises(LayoutError, match="expected it to be about"):
        _said(capsys, "before", "after")


def test_a_root_that_is_no_composefs_image(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = write_image(images / "odd", {"a": [b"x"]}, metadata=b"<html>" * 999)
    sbom_path(layout.folder).write_bytes(_sbom(layout.image.hex, {}))
    with pytest.raises(InvalidDocument, match=r"root\.cfs: not a composefs image"):
        _said(capsys, "before", "odd")


def test_no_such_image(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DiskImageError, match="no folder 'nowhere'"):
        _said(capsys, "before", "nowhere")
