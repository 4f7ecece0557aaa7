"""Debian packages read and rewritten, and what broken ones are answered with."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.shared import deb
from stages.shared.job import Failure


def test_control_and_data_of_a_package(debs: Any) -> None:
    path = debs.make(
        "hello", {"usr/bin/hello": "#!/bin/sh\n", "usr/share/hello/ö": "text"}, control="Depends: a,\n b\n"
    )
    found = deb.fields(deb.control(path))
    assert found["Package"] == "hello"
    assert found["Depends"] == "a,\nb"
    assert not deb.control(path).endswith("\n")
    with deb.data(path) as archive:
        contents = {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isreg()}  # type: ignore[union-attr]
    assert contents == {"./usr/bin/hello": b"#!/bin/sh\n", "./usr/share/hello/ö": b"text"}


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_each_compression_is_read(tmp_path: Path, debs: Any, suffix: str) -> None:
    original = debs.make("hello", {"usr/bin/hello": "hi"})
    plain = tmp_path / "plain.deb"
    deb.store(original, plain)
    compressions: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": gzip.compress,
        ".xz": lzma.compress,
    }
    members = _members(plain.read_bytes())
    path = tmp_path / "other.deb"
    path.write_bytes(
        _ar({"debian-binary": b"2.0\n", f"data.tar{suffix}": compressions[suffix](members["data.tar"])})
    )
    with deb.data(path) as archive:
        assert [entry.name for entry in archive if entry.isreg()] == ["./usr/bin/hello"]


def test_a_stored_package_is_the_same_package(tmp_path: Path, debs: Any) -> None:
    original = debs.make("hello", {"usr/bin/hello": "x" * 1001})
    stored = tmp_path / "stored.deb"
    deb.store(original, stored)
    assert deb.control(stored) == deb.control(original)
    with deb.data(original) as first, deb.data(stored) as second:
        assert [(e.name, e.size, e.mode) for e in first] == [(e.name, e.size, e.mode) for e in second]
    assert stored.stat().st_size > original.stat().st_size


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_dpkg_reads_a_stored_package(tmp_path: Path, debs: Any) -> None:
    stored = tmp_path / "stored.deb"
    deb.store(debs.make("hello", {"usr/bin/hello": "x" * 1001}), stored)
    listed = subprocess.run(["dpkg-deb", "--fsys-tarfile", stored], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(listed)) as archive:
        assert archive.getmember("./usr/bin/hello").size == 1001
    assert (
        subprocess.run(["dpkg-deb", "-f", stored, "Package"], check=True, capture_output=True).stdout
        == b"hello\n"
    )


def _html_page(content: bytes) -> bytes:
    return b"<html>" + content


def _truncated(content: bytes) -> bytes:
    return content[:-20]


def _flipped_in_xz(content: bytes) -> bytes:
    middle = content.index(b"data.tar.xz") + 100
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def _member_out_of_bounds(content: bytes) -> bytes:
    start = content.index(b"data.tar.xz") + 48
    return content[:start] + b"9999999999" + content[start + 10 :]


def _foreign_first_member(content: bytes) -> bytes:
    return content.replace(b"debian-binary", b"_gpgorigin   ", 1)


def _unknown_compression(content: bytes) -> bytes:
    return content.replace(b"data.tar.xz ", b"data.tar.lz ", 1)


def _no_data(content: bytes) -> bytes:
    return content[: content.index(b"data.tar.xz")]


@pytest.mark.parametrize(
    "attack",
    [
        _html_page,
        _truncated,
        _flipped_in_xz,
        _member_out_of_bounds,
        _foreign_first_member,
        _unknown_compression,
        _no_data,
    ],
)
def test_a_broken_package_is_named(debs: Any, attack: Callable[[bytes], bytes]) -> None:
    path = debs.make("hello", {"usr/bin/hello": "hi" * 1000})
    path.write_bytes(attack(path.read_bytes()))
    with pytest.raises(Failure, match=r"hello_1\.0_all\.deb") as caught, deb.data(path) as archive:
        for _ in archive:
            pass
    assert caught.value.details == (path.name,)


@pytest.mark.parametrize("stanza", ["no colon", " folded first", "A: 1\nA: 2", ": nameless"])
def test_a_broken_stanza_is_refused(stanza: str) -> None:
    with pytest.raises(Failure, match="control stanza"):
        deb.fields(stanza)


def _members(archive: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    offset = 8
    while offset < len(archive):
        size = int(archive[offset + 48 : offset + 58])
        found[archive[offset : offset + 16].decode().strip()] = archive[offset + 60 : offset + 60 + size]
        offset += 60 + size + size % 2
    return found


def _ar(members: dict[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, content in members.items():
        parts.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
        parts.append(content + b"\n" * (len(content) % 2))
    return b"".join(parts)
