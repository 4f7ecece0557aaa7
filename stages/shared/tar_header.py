"""One entry of a canonical tar, and the one form of its headers.

POSIX.1-2001 (pax(1), «pax Interchange Format», «ustar Interchange Format»): a ustar block, and an extended
header before it only for what that block can't say. canonical_tar has the rules between entries.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from enum import StrEnum

BLOCK = 512
CAPABILITY = "security.capability"
_PAX_NAME = b"././@PaxHeader"
_PAX_CAPABILITY = b"SCHILY.xattr." + CAPABILITY.encode()
_MOST_OWNER = 0o7777777
_MOST_SIZE = 0o77777777777


class Kind(StrEnum):
    """What an entry is; device nodes, sockets and fifos have no place in a tree."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"


_FLAGS = {Kind.FILE: b"0", Kind.DIRECTORY: b"5", Kind.SYMLINK: b"2", Kind.HARDLINK: b"1"}
_KINDS = {flag: kind for kind, flag in _FLAGS.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One path. `path` is relative without `./` or a trailing `/` (`.` is the root), decoded with
    os.fsdecode.

    `mode` is 12 bits, `mtime` whole seconds, `size` bytes of content (files only). `target` is the text of
    a symbolic link, or a hard link's first path in sort order; a hard link repeats mode, owner and mtime
    of that path and has no capability of its own. `capability` is the raw value of security.capability.
    """

    path: str
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    target: str = ""
    capability: bytes = b""


def header(entry: Entry) -> bytes:
    """The one form of an entry's headers: one block, or an extended header before it where ustar can't say
    it.
    """
    path, target = os.fsencode(entry.path), os.fsencode(entry.target)
    records: dict[bytes, bytes] = {}
    prefix, name = _split(path)
    if not name:
        records[b"path"] = path
        prefix, name = b"", path[:100]
    if len(target) > 100:
        records[b"linkpath"] = target
    for key, value, most in (
        (b"uid", entry.uid, _MOST_OWNER),
        (b"gid", entry.gid, _MOST_OWNER),
        (b"size", entry.size, _MOST_SIZE),
    ):
        if value > most:
            records[key] = b"%d" % value
    if entry.capability:
        records[_PAX_CAPABILITY] = entry.capability
    block = _block(
        name,
        prefix,
        entry.mode,
        0 if b"uid" in records else entry.uid,
        0 if b"gid" in records else entry.gid,
        0 if b"size" in records else entry.size,
        entry.mtime,
        _FLAGS[entry.kind],
        target[:100],
    )
    if not records:
        return block
    if not all(_utf8(records.get(key, b"")) for key in (b"path", b"linkpath")):
        records[b"hdrcharset"] = b"BINARY"
    body = b"".join(_record(key, records[key]) for key in sorted(records))
    return (
        _block(_PAX_NAME, b"", 0, 0, 0, len(body), 0, b"x", b"") + body + bytes(-len(body) % BLOCK) + block
    )


def parse(data: mmap.mmap | bytes, start: int) -> tuple[Entry, int]:
    """The entry whose headers begin at byte `start` of a tar, and the byte after them. Raises ValueError
    where they are not the ones that `header` writes.
    """
    offset = start
    block = data[offset : offset + BLOCK]
    records: dict[bytes, bytes] = {}
    try:
        if block[156:157] == b"x":
            length = _octal(block[124:135])
            records = _records(data[offset + BLOCK : offset + BLOCK + length])
            offset += BLOCK + length + -length % BLOCK
            block = data[offset : offset + BLOCK]
        entry = _entry(block, records)
        canonical = header(entry)
    except (ValueError, KeyError):
        raise ValueError(f"no canonical header at byte {start}") from None
    offset += BLOCK
    if data[start:offset] != canonical:
        raise ValueError(f"{entry.path}: its header at byte {start} is not in canonical form")
    return entry, offset


def _block(
    name: bytes,
    prefix: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    flag: bytes,
    target: bytes,
) -> bytes:
    before = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, uid, gid, size, mtime)
    after = b"%b%bustar\00000%b0000000\x000000000\0%b" % (
        flag,
        target.ljust(100, b"\0"),
        bytes(64),
        prefix.ljust(167, b"\0"),
    )
    # The checksum counts its own field as eight spaces; leaving out the zeros makes the sum four times as
    # fast.
    total = 8 * 0x20 + sum(before.replace(b"\0", b"")) + sum(after.replace(b"\0", b""))
    return b"%b%06o\0 %b" % (before, total, after)


def _split(path: bytes) -> tuple[bytes, bytes]:
    """ustar's prefix and name; an empty name when the path does not fit."""
    if len(path) <= 100:
        return b"", path
    prefix, slash, _ = path[:156].rpartition(b"/")
    name = path[len(prefix) + 1 :]
    return (prefix, name) if slash and prefix and 0 < len(name) <= 100 else (b"", b"")


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %b=%b\n" % (length, key, value)


def _records(body: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    while body:
        length_text, _, _ = body.partition(b" ")
        length = int(length_text) if length_text.isdigit() else 0
        key, equals, value = body[len(length_text) + 1 : length].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise ValueError("broken extended header")
        found[key] = value[:-1]
        body = body[length:]
    return found


def _entry(block: bytes, records: dict[bytes, bytes]) -> Entry:
    prefix = block[345:500].rstrip(b"\0")
    name = block[:100].rstrip(b"\0")
    return Entry(
        path=os.fsdecode(records.get(b"path", prefix + b"/" + name if prefix else name)),
        kind=_KINDS[block[156:157]],
        mode=_octal(block[100:107]),
        uid=int(records[b"uid"]) if b"uid" in records else _octal(block[108:115]),
        gid=int(records[b"gid"]) if b"gid" in records else _octal(block[116:123]),
        mtime=_octal(block[136:147]),
        size=int(records[b"size"]) if b"size" in records else _octal(block[124:135]),
        target=os.fsdecode(records.get(b"linkpath", block[157:257].rstrip(b"\0"))),
        capability=records.get(_PAX_CAPABILITY, b""),
    )


def _octal(text: bytes) -> int:
    return int(text, 8)


def _utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
