"""A canonical tar's entries as composefs-dump(5) text, in the one spelling on which every encoder agrees.

Depth first, names sorted by bytes; a hard link's line with the metadata is its first name in that order,
which is where encoders put the inode; NLINK counts names (directories: 2 and one for each folder inside);
content of up to 64 bytes stands inline, as mkcomposefs does itself (LCFS_RECOMMENDED_INLINE_CONTENT_MAX); a
larger file's payload is its object's name in the store, `xx/rest` of its fs-verity digest.

What one encoder takes and another refuses or reads otherwise is refused here
(docs/explanation/composefs-agreement.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stages.shared.canonical_tar import CAPABILITY, Entry, Kind
from stages.shared.job import Failure

INLINE_MOST = 64
# cfsctl reads no longer symbolic link's target from a dump; mkcomposefs does.
TARGET_MOST = 1024
# What chown(2) can set. mkcomposefs would read 2^32 as 0, which is root; cfsctl refuses it.
OWNER_MOST = 2**32 - 2
_TYPES = {Kind.FILE: 0o100000, Kind.DIRECTORY: 0o040000, Kind.SYMLINK: 0o120000}
_NAMED = {0x5C: b"\\\\", 0x0A: b"\\n", 0x0D: b"\\r", 0x09: b"\\t"}
_ESCAPES = [
    _NAMED.get(byte, bytes([byte]) if 0x21 <= byte <= 0x7E else b"\\x%02x" % byte) for byte in range(256)
]
_SPECIAL = re.compile(rb"[^\x21-\x5b\x5d-\x7e]")
_SPECIAL_XATTR = re.compile(rb"[^\x21-\x3c\x3e-\x5b\x5d-\x7e]")


@dataclass(frozen=True, slots=True)
class Content:
    """A regular file's content: the bytes themselves up to INLINE_MOST, an fs-verity digest (hex) above."""

    inline: bytes = b""
    digest: str = ""


def escape(raw: bytes) -> bytes:
    """A field: blanks, unprintable bytes and the backslash escaped; a lone `-`, which means «not set», as
    well.
    """
    if raw == b"-":
        return b"\\x2d"
    return _SPECIAL.sub(lambda found: _ESCAPES[found[0][0]], raw)


def escape_xattr(raw: bytes) -> bytes:
    """The key or the value of an extended attribute: `=` is escaped, a lone `-` has no meaning."""
    return _SPECIAL_XATTR.sub(lambda found: b"\\x3d" if found[0] == b"=" else _ESCAPES[found[0][0]], raw)


def unescape(field: bytes) -> bytes:
    """What a field says; the inverse of both escapes."""
    return re.sub(
        rb"\\(?:x([0-9a-fA-F]{2})|(.))",
        lambda found: bytes.fromhex(found[1].decode()) if found[1] else _UNESCAPES[found[2]],
        field,
        flags=re.DOTALL,
    )


_UNESCAPES = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def lines(entries: Sequence[Entry], contents: Mapping[str, Content]) -> Iterator[bytes]:
    """One line an entry, each with its newline. `contents` has every regular file that is not empty. Raises
    Failure for what encoders don't read alike.
    """
    inodes = {entry.path: entry for entry in entries if entry.kind is not Kind.HARDLINK}
    names: dict[str, int] = {}
    folders: dict[str, int] = {}
    for entry in entries:
        if entry.kind is Kind.HARDLINK:
            names[entry.target] = names.get(entry.target, 1) + 1
        elif entry.kind is Kind.DIRECTORY and entry.path != ".":
            parent = entry.path.rpartition("/")[0] or "."
            folders[parent] = folders.get(parent, 0) + 1
    first: dict[str, bytes] = {}
    for path, entry in _depth_first(entries):
        inode = inodes[entry.target] if entry.kind is Kind.HARDLINK else entry
        mode = _TYPES[inode.kind] | inode.mode
        if inode.path in names:
            primary = first.setdefault(inode.path, path)
            if primary != path:
                yield b"%b 0 @%o 1 0 0 0 0.0 %b - -\n" % (path, mode, primary)
                continue
        if inode.kind is Kind.DIRECTORY:
            links, size, payload = 2 + folders.get(inode.path, 0), 0, b"- - -"
        elif inode.kind is Kind.SYMLINK:
            target = os.fsencode(inode.target)
            _check(inode.path, "target's length", len(target), TARGET_MOST)
            links, size, payload = 1, len(target), escape(target) + b" - -"
        else:
            links, size, payload = names.get(inode.path, 1), inode.size, b"- - -"
            if size:
                payload = _payload(contents[inode.path])
        _check(inode.path, "owner or group", max(inode.uid, inode.gid), OWNER_MOST)
        xattr = b""
        if inode.capability:
            xattr = b" %b=%b" % (CAPABILITY.encode(), escape_xattr(inode.capability))
        yield b"%b %d %o %d %d %d 0 %d.0 %b%b\n" % (
            path, size, mode, links, inode.uid, inode.gid, inode.mtime, payload, xattr,
        )  # fmt: skip


def _check(path: str, what: str, found: int, most: int) -> None:
    if found > most:
        raise Failure(
            f"{path}: expected at most {most} as its {what}, found {found}",
            "composefs programs don't agree on more; change the entry or leave it out of the tree",
        )


def _depth_first(entries: Sequence[Entry]) -> Iterator[tuple[bytes, Entry]]:
    """Escaped absolute paths and entries; where a tar sorts `a-b` before `a/x`, here it is the reverse."""
    # No name holds a zero byte, and none is smaller: sorting it in the slash's place sorts name by name.
    ordered = sorted(
        (os.fsencode(entry.path).replace(b"/", b"\0"), entry.path, entry) for entry in entries[1:]
    )
    yield b"/", entries[0]
    for _, path, entry in ordered:
        yield escape(b"/" + os.fsencode(path)), entry


def _payload(content: Content) -> bytes:
    if content.digest:
        digest = content.digest.encode()
        return b"%b/%b - %b" % (digest[:2], digest[2:], digest)
    return b"- %b -" % escape(content.inline)
