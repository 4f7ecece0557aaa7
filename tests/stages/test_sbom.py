"""The sbom stage: what it says of a made-up image, that SPDX's own tools take it, what can't mislead it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from stages.sbom import __main__ as stage
from stages.shared.job import Failure, Job
from supply_chain.sbom import parse_sbom
from tests.spdx import problems
from tests.stages import sbom_inputs as made

EPOCH = 1_700_000_000


@dataclass
class Image:
    """The stage's inputs and parameters, to be changed before it runs."""

    inputs: dict[str, Path]
    params: dict[str, Any]
    make_job: Callable[..., Job]

    def document(self) -> bytes:
        job = self.make_job("sbom", self.params, inputs=self.inputs, epoch=EPOCH)
        stage.program(job)
        return job.output("document").read_bytes()

    def supplier(self, name: str) -> str:
        """What is said of the binary package of that name."""
        (found,) = (
            str(each["supplier"])
            for each in json.loads(self.document())["packages"]
            if each["name"] == name and each.get("primaryPackagePurpose") != "SOURCE"
        )
        return found


@pytest.fixture
def image(debs: Any, make_job: Callable[..., Job], tmp_path: Path) -> Image:
    """A root of three packages, an initramfs with two files of one package, a packaged kernel."""
    files = {"usr/bin/python3": "elf", "usr/lib/python3/os.py": "os"}
    control = "Source: python3.13\nMaintainer: Python Team <team@tracker.debian.org>\n"
    python = debs.make(
        "python3", files | {"usr/share/doc/python3/copyright": made.COPYRIGHT}, "3.13-1", "amd64", control
    )
    unused = debs.make("gcc-base", {"usr/share/doc/gcc-base/README": "none"}, "14", "amd64")
    kernel = debs.make("linux-image-test", {"boot/vmlinuz": "kernel"}, "6.12.1-1", "amd64")
    runtime, of_runtime = made.repository(debs, tmp_path / "runtime", [python, unused])
    of_kernel, locked_kernel = made.repository(debs, tmp_path / "kernel", [kernel])
    packed = made.initramfs(
        {
            "init": b"#!/usr/bin/python3",
            "usr/bin/python3": b"elf",
            "usr/lib/python3/os.pyc": b"os",
            "usr/lib/disk-image/initramfs/main.pyc": b"main",
            "usr/lib/disk-image/modules/erofs.ko": b"erofs",
        }
    )
    release = f"{made.RELEASE}\n".encode()
    single = {"manifest": made.manifest(packed), "initramfs": packed, "release": release}
    for name, content in single.items():
        (tmp_path / name).write_bytes(content)
    names = ("bash", "libc6", "tzdata")
    status = "\n".join(made.stanza(name) for name in names)
    return Image(
        inputs={
            **{name: tmp_path / name for name in single},
            "packages": made.root(tmp_path, status, {"bash": made.COPYRIGHT, "libc6": "no format"}),
            "modules": made.modules(tmp_path, "erofs.ko.xz"),
            "kernel": of_kernel,
            "runtime": runtime,
        },
        params={
            "name": "small",
            "suite": "trixie",
            "arch": "amd64",
            "root": made.locked(*names),
            "kernel": locked_kernel,
            "initramfs": of_runtime,
            "tools": [*made.locked("bash"), {**made.locked("tzdata")[0], "version": "2026b-1"}],
        },
        make_job=make_job,
    )


def test_the_document(image: Image, snapshot: SnapshotAssertion) -> None:
    document = image.document()
    assert json.dumps(json.loads(document), indent=1, ensure_ascii=False) == snapshot
    assert problems(document) == []


def test_it_is_canonical_and_the_same_in_any_order(image: Image) -> None:
    document = image.document()
    assert (
        document
        == json.dumps(
            json.loads(document), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
    )
    for name in ("root", "initramfs", "tools"):
        image.params[name] = image.params[name][::-1]
    assert image.document() == document


def test_another_image_or_another_tool_gives_another_namespace(image: Image) -> None:
    first = json.loads(image.document())["documentNamespace"]
    image.params["tools"] = []
    second = json.loads(image.document())["documentNamespace"]
    assert first != second
    assert first.rpartition("/")[0] == second.rpartition("/")[0]
    image.inputs["manifest"].write_bytes(image.inputs["manifest"].read_bytes() + b"\n")
    third = json.loads(image.document())["documentNamespace"]
    assert third.rpartition("/")[0] != second.rpartition("/")[0]


def test_what_is_read_from_it(image: Image) -> None:
    document = image.document()
    sbom = parse_sbom(json.loads(document), "it")
    names = [package.name for package in sbom.packages.values()]
    assert names == ["bash", "libc6", "linux-image-test", "python3", "tzdata"]
    bash = sbom.packages["pkg:deb/debian/bash@1:5.2-2%2Bb1?arch=amd64&distro=debian-13"]
    assert sbom.layers == {
        "vmlinuz": hashlib.sha256(b"kernel").hexdigest(),
        "initramfs.cpio.zst": hashlib.sha256(image.inputs["initramfs"].read_bytes()).hexdigest(),
        "root.cfs": "0c" * 32,
    }
    assert bash.version == "1:5.2-2+b1"
    assert bash.sha256 == made.locked("bash")[0]["sha256"]


def test_a_package_that_gave_the_initramfs_nothing_is_not_in_it(image: Image) -> None:
    assert b"gcc-base" not in image.document()


def test_a_kernel_without_modules_puts_none_into_the_root(image: Image, tmp_path: Path) -> None:
    (tmp_path / "modules.tar").unlink()
    image.inputs["modules"] = made.modules(tmp_path)
    assert b"SPDXRef-Modules" not in image.document()


def test_a_root_that_is_not_the_locked_one_is_refused(image: Image) -> None:
    image.params["root"][0]["version"] = "1:5.2-3"
    with pytest.raises(Failure, match=r"not locked: \['bash:amd64=1:5.2-2\+b1'\]; not installed: .*5.2-3"):
        image.document()


def test_an_initramfs_that_is_not_the_images_is_refused(image: Image) -> None:
    image.inputs["initramfs"].write_bytes(made.initramfs({"init": b"another"}))
    with pytest.raises(Failure, match=r"initramfs: expected sha256:.*as the manifest says"):
        image.document()


HOSTILE = {
    "folded_over_lines": ("Maintainer: Some\n body <x@example>\n", "Person: Some body (x@example)"),
    "parentheses": ("Maintainer: Laszlo (GCS) <gcs@debian.org>\n", "Person: Laszlo GCS (gcs@debian.org)"),
    "no_address": ("Maintainer: just words\n", "NOASSERTION"),
    "empty": ("Maintainer:\n", "NOASSERTION"),
    "control_characters": ("Maintainer: a\x1b[31m\tb\x85 <x@example>\n", "Person: a [31m b (x@example)"),
    "huge": (f"Maintainer: {'n' * 100_000} <x@example>\n", "NOASSERTION"),
    "json": ('Maintainer: "},{" <x@example>\n', 'Person: "},{" (x@example)'),
}


@pytest.mark.parametrize(("field", "supplier"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_field_stays_one_bounded_line(
    image: Image, tmp_path: Path, field: str, supplier: str
) -> None:
    (tmp_path / "packages.tar").unlink()
    status = "\n".join(
        (made.stanza("bash").replace(made.MAINTAINER, field), made.stanza("libc6"), made.stanza("tzdata"))
    )
    image.inputs["packages"] = made.root(tmp_path, status, {})
    assert image.supplier("bash") == supplier
    assert problems(image.document()) == []


def test_text_that_is_not_utf8_is_replaced(image: Image, tmp_path: Path) -> None:
    (tmp_path / "packages.tar").unlink()
    status = "\n".join(map(made.stanza, ("bash", "libc6", "tzdata"))).encode()
    status = status.replace(b"Matthias", b"Matth\xefas\xff")
    broken = made.COPYRIGHT.encode().replace(b"what you", b"\xff\xfe")
    image.inputs["packages"] = made.root(tmp_path, status, {"bash": broken})
    assert image.supplier("bash") == "Person: Matth�as� Klose (doko@debian.org)"
    assert problems(image.document()) == []


def test_a_database_that_dpkg_did_not_write_is_refused(image: Image, tmp_path: Path) -> None:
    (tmp_path / "packages.tar").unlink()
    image.inputs["packages"] = made.root(tmp_path, "Package: bash\nnot a field\n", {})
    with pytest.raises(Failure, match="control stanza"):
        image.document()
