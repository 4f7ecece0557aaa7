"""Debian binary packages, read with the standard library: deb(5), deb-control(5), ar(5).

A .deb is an ar archive of three members: `debian-binary`, `control.tar.*` and `data.tar.*`. Whatever is
wrong with one raises Failure naming the file.
"""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from stages.shared.job import Failure

_MAGIC = b"!<arch>\n"
_HEADER = 60
_CHUNK = 1 << 20
_BROKEN = (tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError)


def control(path: Path) -> str:
    """The control stanza's text, without a trailing newline."""
    with _tar(path, "control.tar") as archive:
        for member in archive:
            if member.name.removeprefix("./") == "control" and member.isreg():
                content = archive.extractfile(member)
                if content is not None:
                    return content.read().decode("utf-8").rstrip("\n")
    raise _broken(path, "control.tar has no file `control`")


def fields(stanza: str) -> dict[str, str]:
    """One deb822 stanza as field → value; the lines of a folded value are joined with a newline, markers
    removed.
    """
    found: dict[str, str] = {}
    name = ""
    for line in stanza.split("\n"):
        if line[:1] in (" ", "\t"):
            if not name:
                raise Failure(
                    f"control stanza: folded line {line!r} before any field",
                    "the file is not a control stanza",
                )
            found[name] += "\n" + line[1:]
            continue
        name, colon, value = line.partition(":")
        if not colon or not name or name in found:
            raise Failure(
                f"control stanza: expected one `Field: value`, found {line!r}",
                "the file is not a control stanza",
            )
        found[name] = value.strip()
    return found


@contextmanager
def data(path: Path) -> Iterator[tarfile.TarFile]:
    """The package's files as a tar stream: iterate once, read each member before the next."""
    with _tar(path, "data.tar") as archive:
        yield archive


def store(path: Path, output: Path) -> None:
    """Write the same package with its members stored, not compressed: dpkg then never waits for xz."""
    with path.open("rb") as file, output.open("wb") as stored:
        stored.write(_MAGIC)
        _append(stored, "debian-binary", _find(file, path, "debian-binary")[1])
        for wanted in ("control.tar", "data.tar"):
            name, member = _find(file, path, wanted)
            try:
                with _decompressed(member, name, path) as content:
                    _append(stored, wanted, content)
            except _BROKEN as error:
                raise _broken(path, f"{name}: {error}") from error


def _append(archive: BinaryIO, name: str, content: BinaryIO | _Slice) -> None:
    start = archive.tell()
    archive.seek(_HEADER, io.SEEK_CUR)
    length = 0
    while chunk := content.read(_CHUNK):
        archive.write(chunk)
        length += len(chunk)
    archive.write(b"\n" * (length % 2))
    archive.seek(start)
    archive.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{length:<10}`\n".encode())
    archive.seek(0, io.SEEK_END)


@contextmanager
def _tar(path: Path, wanted: str) -> Iterator[tarfile.TarFile]:
    with path.open("rb") as file:
        name, member = _find(file, path, wanted)
        try:
            with (
                _decompressed(member, name, path) as content,
                tarfile.open(fileobj=content, mode="r|", bufsize=_CHUNK, encoding="utf-8") as archive,
            ):
                yield archive
        except _BROKEN as error:
            raise _broken(path, f"{name}: {error}") from error


def _decompressed(member: _Slice, name: str, path: Path) -> BinaryIO:
    buffered = io.BufferedReader(member, _CHUNK)
    suffix = name.partition(".tar")[2]
    if suffix == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(buffered))
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=buffered))
    if suffix == "":
        return buffered
    raise _broken(path, f"{name}: compression {suffix!r} is not one of .xz, .gz, none")


def _find(file: BinaryIO, path: Path, wanted: str) -> tuple[str, _Slice]:
    """The ar member called `wanted` or `wanted`.<compression>."""
    size = path.stat().st_size
    file.seek(0)
    magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise _broken(path, f"expected an ar archive ({_MAGIC!r}), found {magic!r}")
    offset = len(_MAGIC)
    first = True
    while offset < size:
        file.seek(offset)
        header = file.read(_HEADER)
        if len(header) != _HEADER or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise _broken(path, f"no ar member header at byte {offset}")
        name = header[:16].decode("ascii", "replace").rstrip().removesuffix("/")
        length = int(header[48:58])
        start = offset + _HEADER
        if start + length > size:
            raise _broken(path, f"truncated: {name} ends at byte {start + length}, the file at {size}")
        if first and name != "debian-binary":
            raise _broken(path, f"expected debian-binary as the first member, found {name}")
        first = False
        if name == wanted or name.startswith(wanted + "."):
            return name, _Slice(file, start, length)
        offset = start + length + length % 2
    raise _broken(path, f"no member {wanted}")


class _Slice(io.RawIOBase):
    """Part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file = file
        self._next = start
        self._end = start + length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._next)
        found = self._file.read(min(len(buffer), self._end - self._next))
        buffer[: len(found)] = found
        self._next += len(found)
        return len(found)


def _broken(path: Path, why: str) -> Failure:
    return Failure(
        f"{path.name}: not a Debian package: {why}",
        "remove the file, so that it is fetched again",
        details=[path.name],
    )
