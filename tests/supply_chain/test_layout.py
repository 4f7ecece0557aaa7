"""A layout on disk is believed only where its bytes are those of its digests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supply_chain.errors import LayoutError
from supply_chain.image import ARTIFACT, CONFIG, FSVERITY, TITLE
from supply_chain.layout import open_layout

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
VERITY = "ab" * 32
FILES = {"build-manifest.json": b"{}", "vmlinuz": b"a kernel", "root.cfs": b"metadata"}
Json = dict[str, Any]


class Written:
    """A layout, document by document, so that a test can spoil any of them and keep the rest consistent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: Json = {
            "arch": "amd64",
            "kernel_version": "6.12.1-test",
            "cmdline": f"console=ttyS0 composefs={VERITY}",
            "fsverity_algorithm": "sha256",
            "fsverity_digest": VERITY,
            "source_date_epoch": 1_700_000_000,
            "format_versions": {"config": 1, "build_manifest": 1, "composefs": 0, "pack": 1},
        }
        self.layers = [self._layer(title, content) for title, content in FILES.items()]
        self.layers[-1]["annotations"][FSVERITY] = f"sha256:{VERITY}"
        self.manifest: Json = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": ARTIFACT}
        self.index: Json = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}

    def blob(self, content: bytes, media_type: str) -> Json:
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / "blobs" / "sha256" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def _layer(self, title: str, content: bytes) -> Json:
        return {**self.blob(content, "application/x"), "annotations": {TITLE: title}}

    def write(self) -> Path:
        config = self.blob(json.dumps(self.config).encode(), CONFIG)
        manifest = {"config": config, "layers": self.layers, **self.manifest}
        described = {**self.blob(json.dumps(manifest).encode(), MANIFEST), "artifactType": ARTIFACT}
        index = {"manifests": [described], **self.index}
        (self.folder / "index.json").write_text(json.dumps(index))
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return self.folder

    def path(self, title: str) -> Path:
        return self.folder / "blobs" / "sha256" / hashlib.sha256(FILES[title]).hexdigest()


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "layout")


def test_an_image_is_read(written: Written) -> None:
    layout = open_layout(written.write())
    layout.check()
    assert layout.image.digest == f"sha256:{hashlib.sha256(layout.manifest_bytes).hexdigest()}"
    assert list(layout.layers) == list(FILES)
    for title, content in FILES.items():
        layer = layout.layer(title)
        assert layout.read(layer, limit=100) == content == b"".join(layout.stream(layer))
        assert layout.path(layer).read_bytes() == content
    assert (layout.config.arch, layout.config.kernel_version) == ("amd64", "6.12.1-test")
    assert layout.config.fsverity_digest == VERITY


def test_signatures_may_follow_the_image(written: Written) -> None:
    before = open_layout(written.write())
    index = json.loads((written.folder / "index.json").read_text())
    bundle = written.blob(b"bundle", MANIFEST)
    index["manifests"].append({**bundle, "artifactType": "application/vnd.dev.sigstore.bundle.v0.3+json"})
    (written.folder / "index.json").write_text(json.dumps(index))
    after = open_layout(written.folder)
    assert (after.image, len(after.index.manifests)) == (before.image, 2)
    after.check()


def _other_bytes(written: Written) -> None:
    written.path("vmlinuz").write_bytes(b"A kernel")


def _truncated(written: Written) -> None:
    written.path("vmlinuz").write_bytes(b"a kern")


def _gone(written: Written) -> None:
    written.path("vmlinuz").unlink()


def _fifo(written: Written) -> None:
    written.path("vmlinuz").unlink()
    os.mkfifo(written.path("vmlinuz"))


def _folder(written: Written) -> None:
    written.path("vmlinuz").unlink()
    written.path("vmlinuz").mkdir()


def _device(written: Written) -> None:
    written.path("vmlinuz").unlink()
    written.path("vmlinuz").symlink_to("/dev/zero")


def _manifest_changed(written: Written) -> None:
    index = json.loads((written.folder / "index.json").read_text())
    path = written.folder / "blobs" / "sha256" / index["manifests"][0]["digest"][7:]
    path.write_bytes(path.read_bytes().replace(b"vmlinuz", b"vmlinux"))


BLOB_ATTACKS: list[tuple[Callable[[Written], None], str]] = [
    (_other_bytes, "its content's digest is"),
    (_truncated, "expected 8 bytes, found 6"),
    (_gone, "No such file or directory"),
    (_fifo, "not a regular file"),
    (_folder, "not a regular file|Is a directory"),
    (_device, "not a regular file"),
    (_manifest_changed, "its content's digest is"),
]


@pytest.mark.parametrize(("attack", "said"), BLOB_ATTACKS)
def test_changed_content_is_refused(attack: Callable[[Written], None], said: str, written: Written) -> None:
    folder = written.write()
    attack(written)
    with pytest.raises(LayoutError, match=said):
        open_layout(folder).check()


def _set(part: str, **changes: Any) -> Callable[[Written], None]:
    def change(written: Written) -> None:
        getattr(written, part).update(changes)

    return change


def _title(title: str) -> Callable[[Written], None]:
    def change(written: Written) -> None:
        written.layers[1]["annotations"] = {TITLE: title}

    return change


def _without_annotation(written: Written) -> None:
    del written.layers[2]["annotations"][FSVERITY]


def _without_metadata(written: Written) -> None:
    del written.layers[2]


def _missing(name: str) -> Callable[[Written], None]:
    return lambda written: written.config.pop(name) and None


DOCUMENT_ATTACKS: list[tuple[Callable[[Written], None], str]] = [
    (_set("manifest", artifactType="application/vnd.other"), "artifact type: expected"),
    (_set("manifest", mediaType="application/vnd.oci.image.index.v1+json"), "media type: expected"),
    (_set("manifest", schemaVersion=1), "schemaVersion"),
    (_set("config", arch="riscv64"), "configuration: arch"),
    (_set("config", kernel_version="../6"), "configuration: kernel_version"),
    (_set("config", cmdline="console=ttyS0"), "cmdline: expected composefs="),
    (_set("config", cmdline=f"composefs={'cd' * 32} composefs={VERITY}"), "cmdline: expected composefs="),
    (_set("config", cmdline=f"composefs={VERITY}\ninit=/bin/sh"), "configuration: cmdline"),
    (_set("config", fsverity_algorithm="sha512"), "configuration: fsverity_algorithm"),
    (_set("config", fsverity_digest="cd" * 32), "as root.cfs is annotated"),
    (_set("config", fsverity_digest="AB" * 32), "configuration: fsverity_digest"),
    (_set("config", source_date_epoch="1"), "configuration: source_date_epoch"),
    (
        _set("config", format_versions={"config": 1, "build_manifest": 1, "composefs": 1, "pack": 1}),
        "composefs",
    ),
    (_set("config", built_at="2026-01-01"), "configuration: built_at"),
    (_missing("arch"), "configuration: arch"),
    (_title("../../etc/passwd"), "expected a plain file name"),
    (_title("/etc/passwd"), "expected a plain file name"),
    (_title(".."), "expected a plain file name"),
    (_title(""), "expected a plain file name"),
    (_title("root.cfs"), "expected a plain file name, once, found 'root.cfs'"),
    (_without_annotation, "expected None, as root.cfs is annotated"),
    (_without_metadata, "no layer with the title 'root.cfs'"),
]


@pytest.mark.parametrize(("attack", "said"), DOCUMENT_ATTACKS)
def test_documents_that_the_build_would_not_write_are_refused(
    attack: Callable[[Written], None], said: str, written: Written
) -> None:
    attack(written)
    with pytest.raises(LayoutError, match=said):
        open_layout(written.write()).check()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("oci-layout", b'{"imageLayoutVersion": "2.0.0"}', "expected version 1.0.0, found '2.0.0'"),
        ("oci-layout", b"<html>", "expected a JSON object"),
        ("index.json", b'{"schemaVersion": 2, "manifests": []}', "found no manifest"),
        ("index.json", b'{"schemaVersion": 2, "schemaVersion": 2, "manifests": []}', "a key stands twice"),
        ("index.json", b" " * (5 << 20), "expected at most 4194304 bytes"),
        (
            "index.json",
            json.dumps(
                {
                    "schemaVersion": 2,
                    "manifests": [{"mediaType": MANIFEST, "digest": "sha256:../x", "size": 1}],
                }
            ),
            "manifests.0.digest",
        ),
        (
            "index.json",
            json.dumps(
                {
                    "schemaVersion": 2,
                    "manifests": [{"mediaType": MANIFEST, "digest": "sha256:" + "0" * 64, "size": 1}],
                }
            ),
            "as the first manifest, found None",
        ),
    ],
)
def test_a_folder_that_is_no_layout_is_refused(
    name: str, content: bytes | str, said: str, written: Written
) -> None:
    folder = written.write()
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LayoutError, match=said):
        open_layout(folder)


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_a_missing_document_is_named(name: str, written: Written) -> None:
    folder = written.write()
    (folder / name).unlink()
    with pytest.raises(LayoutError, match=f"not an OCI layout: {name}: No such file"):
        open_layout(folder)


def test_a_blob_larger_than_its_reader_takes_is_refused(written: Written) -> None:
    layout = open_layout(written.write())
    with pytest.raises(LayoutError, match="expected at most 7 bytes, found 8"):
        layout.read(layout.layer("vmlinuz"), limit=7)


def test_content_is_refused_after_its_last_piece(written: Written) -> None:
    layout = open_layout(written.write())
    _other_bytes(written)
    pieces = layout.stream(layout.layer("vmlinuz"))
    assert next(pieces) == b"A kernel"
    with pytest.raises(LayoutError, match="its content's digest is"):
        next(pieces)
