"""Reading the image from an OCI image layout in one file: a tar archive in the ustar format (POSIX.1-2017,
pax, «ustar Interchange Format»).

Nothing is unpacked. Blobs are read where they lie, so that no name in the archive becomes a path and no blob
is there twice. What is not compressed can't grow when it is read. The walk over the headers refuses

1. what is neither a regular file nor a folder: links, devices, sparse files, extended headers;
2. names that a layout does not have, among them absolute ones and those with `..`;
3. a name that is there twice;
4. a file that goes beyond the archive's end;
5. more files than any image has.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from supply_chain import oci
from supply_chain.errors import LayoutError
from supply_chain.layout import Layout, read_index

_CHUNK = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_MOST_FILES = 4096
_FOLDERS = frozenset({".", "blobs", "blobs/sha256"})
_FILES = re.compile(r"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}")
_HINT = "tar --format=ustar -C LAYOUT -cf FILE oci-layout index.json blobs"
_REFUSED = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a fifo",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclass(frozen=True, slots=True)
class _File:
    """Where a file's bytes are in the archive."""

    offset: int
    size: int


@dataclass(frozen=True)
class ArchivedLayout(Layout):
    """A layout whose `folder` is an archive. Make one with `open_archive`."""

    files: Mapping[str, _File]

    def has(self, blob: oci.Descriptor) -> bool:
        found = self.files.get(_name(blob))
        return found is not None and found.size == blob.size

    def _stored(self, blob: oci.Descriptor, where: str) -> Iterator[bytes]:
        found = self.files.get(_name(blob))
        if found is None:
            raise LayoutError(f"{where}: not there", _HINT)
        if found.size != blob.size:
            raise LayoutError(f"{where}: expected {blob.size} bytes, found {found.size}", _HINT)
        descriptor = _opened(self.folder)
        try:
            yield from _pieces(descriptor, found)
        finally:
            os.close(descriptor)


def open_archive(path: Path) -> ArchivedLayout:
    """The layout in the archive at `path`. Raises LayoutError when it is none, or holds anything else."""
    try:
        descriptor = _opened(path)
        try:
            files = _walk(path, descriptor)

            def document(name: str) -> bytes:
                if name not in files:
                    raise LayoutError(f"{path}: not an OCI layout: {name}: not there", _HINT)
                if files[name].size > oci.DOCUMENT_LIMIT:
                    raise LayoutError(
                        f"{path}: {name}: expected at most {oci.DOCUMENT_LIMIT} bytes, "
                        f"found {files[name].size}",
                        _HINT,
                    )
                return b"".join(_pieces(descriptor, files[name]))

            return ArchivedLayout(path, read_index(path, document), files)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror or error}", _HINT) from None


def _walk(path: Path, descriptor: int) -> dict[str, _File]:
    end = os.fstat(descriptor).st_size
    files: dict[str, _File] = {}
    folders: set[str] = set()
    offset = 0
    while True:
        try:
            member = tarfile.TarInfo.frombuf(
                os.pread(descriptor, _BLOCK, offset), "ascii", "backslashreplace"
            )
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            return files
        except tarfile.HeaderError as error:
            raise LayoutError(f"{path}: offset {offset}: not a tar header: {error}", _HINT) from None
        offset += _BLOCK
        name = member.name.removeprefix("./")
        _check(path, member, name)
        if name in files or name in folders:  # 3
            raise LayoutError(f"{path}: {name!r} is there twice", _HINT)
        if member.isdir():
            folders.add(name)
            continue
        if not 0 <= member.size <= end - offset:  # 4
            raise LayoutError(
                f"{path}: {name!r}: expected at most {end - offset} bytes, which are left, "
                f"found {member.size}",
                _HINT,
            )
        if len(files) == _MOST_FILES:  # 5
            raise LayoutError(f"{path}: expected at most {_MOST_FILES} files, found more", _HINT)
        files[name] = _File(offset, member.size)
        offset += -(-member.size // _BLOCK) * _BLOCK


def _check(path: Path, member: tarfile.TarInfo, name: str) -> None:
    """Steps 1 and 2."""
    shown = ascii(name[:120])
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        kind = _REFUSED.get(member.type, f"of type {ascii(member.type)[1:]}")
        raise LayoutError(f"{path}: {shown} is {kind}: expected regular files and folders", _HINT)
    if not (name in _FOLDERS if member.isdir() else _FILES.fullmatch(name)):
        raise LayoutError(
            f"{path}: expected oci-layout, index.json and blobs/sha256/<digest> alone, found {shown}", _HINT
        )


def _pieces(descriptor: int, file: _File) -> Iterator[bytes]:
    offset, left = file.offset, file.size
    while left:
        chunk = os.pread(descriptor, min(left, _CHUNK), offset)
        if not chunk:
            raise OSError("the archive was cut off while it was read")
        offset, left = offset + len(chunk), left - len(chunk)
        yield chunk


def _opened(path: Path) -> int:
    # Opening a fifo would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor


def _name(blob: oci.Descriptor) -> str:
    return f"blobs/sha256/{blob.hex}"
