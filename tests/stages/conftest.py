"""Packages and job folders made on the spot, so that stage programs run without an archive and without a
sandbox.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.shared.job import Job

EPOCH = 1_700_000_000
# A path in a package: text is a file's content, a TarInfo stands for itself.
Content = str | bytes | tarfile.TarInfo


class Debs:
    """Writes .deb files below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(
        self,
        name: str,
        files: Mapping[str, Content],
        version: str = "1.0",
        arch: str = "all",
        control: str = "",
    ) -> Path:
        """A package; parents of its files are added as directories, as dpkg-deb does."""
        stanza = f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\n{control}"
        stanza += f"Description: {name}\n made up\n"
        path = self.folder / "pool/main" / name[0] / name / f"{name}_{version}_{arch}.deb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            ar(
                {
                    "debian-binary": b"2.0\n",
                    "control.tar.xz": lzma.compress(_tar({"control": stanza})),
                    "data.tar.xz": lzma.compress(_tar(files)),
                }
            )
        )
        return path

    def locked(self, path: Path) -> dict[str, Any]:
        """The plan's parameter for a package of this folder."""
        name, version, arch = path.stem.split("_")
        content = path.read_bytes()
        return {
            "name": name,
            "version": version,
            "arch": arch,
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pool_path": str(path.relative_to(self.folder)),
        }


def ar(members: Mapping[str, bytes]) -> bytes:
    """An ar archive, as ar(5)."""
    parts = [b"!<arch>\n"]
    for name, content in members.items():
        parts.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
        parts.append(content + b"\n" * (len(content) % 2))
    return b"".join(parts)


def _tar(files: Mapping[str, Content]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        seen: set[str] = set()
        for path, content in files.items():
            for parent in reversed(Path(path).parents):
                if str(parent) not in (".", "/", *seen, *files):
                    seen.add(str(parent))
                    folder = tarfile.TarInfo(f"./{parent}")
                    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(folder)
            if isinstance(content, tarfile.TarInfo):
                content.name = f"./{path}"
                archive.addfile(content)
                continue
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(f"./{path}")
            info.size, info.mtime = len(data), 1_000_000_000
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def debs(tmp_path: Path) -> Debs:
    return Debs(tmp_path / "archive")


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """A job folder with inputs linked in: make_job("tools", {...params}, repository=path,
    transport={...}).
    """
    count = iter(range(1000))

    def make(
        name: str,
        params: Mapping[str, Any],
        *,
        inputs: Mapping[str, Path] = {},
        transport: Mapping[str, Any] | None = None,
        epoch: int = EPOCH,
    ) -> Job:
        folder = tmp_path / f"job-{next(count)}"
        (folder / "in").mkdir(parents=True)
        (folder / "out").mkdir()
        for wanted, path in inputs.items():
            (folder / "in" / wanted).symlink_to(path)
        if transport is not None:
            (folder / "transport.json").write_text(json.dumps(transport))
        return Job(folder, name, epoch, params)

    return make
