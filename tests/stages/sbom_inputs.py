"""A made-up image with everything that its SBOM is written from, in the real formats."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.initramfs import newc
from stages.initramfs.__main__ import compress
from stages.mirror.index import packages_index
from stages.mirror.locked import Locked
from stages.shared import canonical_tar

RELEASE = "6.12.1-test"
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2001 Somebody
License: GPL-2+

Files: lib/*
License: Expat or Made-Up

License: Made-Up
 Do what you like.
 .
  Indented.
"""
MAINTAINER = "Maintainer: Matthias Klose <doko@debian.org>\n"
CONTROL: Mapping[str, tuple[str, str, str]] = {
    # name: version, architecture, more control fields
    "bash": ("1:5.2-2+b1", "amd64", f"Source: bash (5.2-2)\n{MAINTAINER}"),
    "libc6": (
        "2.41~rc1+deb13u5",
        "amd64",
        "Source: glibc\nMaintainer: Libc Maintainers <l@lists.example>\n",
    ),
    "tzdata": ("2026a-0", "all", "Maintainer: Nobody\n"),
}


def stanza(name: str) -> str:
    """What dpkg's database says of a package of CONTROL."""
    version, arch, fields = CONTROL[name]
    state = "Status: install ok installed"
    return f"Package: {name}\n{state}\nVersion: {version}\nArchitecture: {arch}\n{fields}"


def root(folder: Path, status: str | bytes, copyrights: Mapping[str, str | bytes]) -> Path:
    """The installed root as one canonical tar."""
    tree = folder / "root"
    (tree / "var/lib/dpkg").mkdir(parents=True)
    _write(tree / "var/lib/dpkg/status", status)
    for name, text in copyrights.items():
        path = tree / "usr/share/doc" / name / "copyright"
        path.parent.mkdir(parents=True)
        _write(path, text)
    packed = folder / "packages.tar"
    canonical_tar.pack(tree, packed, 1)
    shutil.rmtree(tree)
    return packed


def modules(folder: Path, *names: str) -> Path:
    """The kernel stage's modules: none, when no name is given."""
    tree = folder / "modules-tree"
    tree.mkdir()
    for name in names:
        path = tree / "usr/lib/modules" / RELEASE / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    packed = folder / "modules.tar"
    canonical_tar.pack(tree, packed, 1)
    shutil.rmtree(tree)
    return packed


def initramfs(files: Mapping[str, bytes]) -> bytes:
    """A packed initramfs of these files."""
    stream = io.BytesIO()
    writer = newc.Writer(stream, 1)
    folders = {str(parent) for path in files for parent in Path(path).parents} - {"."}
    for path in sorted({*files, *folders}):
        if path in files:
            writer.file(path, 0o644, files[path])
        else:
            writer.directory(path, 0o755, 2)
    writer.close()
    return compress(stream.getvalue())


def manifest(packed: bytes) -> bytes:
    """The image's manifest, of which only the layers named here matter."""
    kind = "application/vnd.powernode.disk_image"
    layers = [
        (f"{kind}.kernel.v1", hashlib.sha256(b"kernel").hexdigest(), "vmlinuz"),
        (f"{kind}.initramfs.v1+zstd", hashlib.sha256(packed).hexdigest(), "initramfs.cpio.zst"),
        ("application/vnd.erofs", "0c" * 32, "root.cfs"),
    ]
    verity = {"containers.composefs.fsverity": f"sha256:{'0d' * 32}"}
    described = [
        {
            "mediaType": kind,
            "digest": f"sha256:{digest}",
            "size": 1,
            "annotations": {
                "org.opencontainers.image.title": title,
                **(verity if title == "root.cfs" else {}),
            },
        }
        for kind, digest, title in layers
    ]
    return json.dumps({"layers": described}).encode()


def repository(debs: Any, folder: Path, packages: Sequence[Path]) -> tuple[Path, list[dict[str, str]]]:
    """A mirror's output with these packages, and the plan's parameter for them."""
    files = [debs.locked(package) for package in packages]
    for file, package in zip(files, packages, strict=True):
        target = folder / file["pool_path"]
        target.parent.mkdir(parents=True)
        shutil.copy(package, target)
    (folder / "Packages").write_text(packages_index([Locked.parse(each) for each in files], folder))
    # Compressed bytes belong to the version of liblzma.
    return folder, [_parameter(file["name"], file["version"], file["arch"]) for file in files]


def locked(*names: str) -> list[dict[str, str]]:
    """The plan's parameter for packages of CONTROL."""
    return [_parameter(name, *CONTROL[name][:2]) for name in names]


def _parameter(name: str, version: str, arch: str) -> dict[str, str]:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "version": version, "arch": arch, "sha256": digest}


def _write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
