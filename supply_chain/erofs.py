"""Reading a root's metadata image (`root.cfs`): which files it names, with what content.

Format: erofs, Linux Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h, as composefs writes it:
uncompressed inodes, content of up to 64 bytes inline, and for larger files overlayfs's xattr
`trusted.overlay.metacopy` with the fs-verity digest of the object that has the content
(fs/overlayfs/overlayfs.h). Whoever reads an image that nobody verified gets wrong names at worst: every
offset is checked, no folder is entered twice, and the work is bounded by the image's size.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from stages.shared import fsverity
from supply_chain.errors import InvalidDocument

_MAGIC = 0xE0F5E1E2
_SUPERBLOCK = 1024
# magic, checksum, feature_compat, blkszbits, sb_extslots, root_nid, inos, build_time, build_time_nsec,
# blocks, meta_blkaddr, xattr_blkaddr
_SUPER = struct.Struct("<IIIBBHQQIIII")
# i_format, i_xattr_icount, i_mode, i_nlink, i_size, reserved, i_u, i_ino, i_uid, i_gid, reserved
_COMPACT = struct.Struct("<HHHHIIIIHHI")
# i_format, i_xattr_icount, i_mode, reserved, i_size, i_u, i_ino, i_uid, i_gid, i_mtime, i_mtime_nsec,
# i_nlink
_EXTENDED = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT = struct.Struct("<QHBB")
_SLOT = 32
_PLAIN, _INLINE, _CHUNKS = 0, 2, 4
_PREFIXES = {
    1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security.",
}  # fmt: skip
_METACOPY = "trusted.overlay.metacopy"
_OVERLAY = "trusted.overlay."
# version, length, flags, algorithm (1: sha256), digest
_METACOPY_VALUE = struct.Struct("<BBBB32s")
# An image is read about once, but for what inodes share. Overlapping inodes could make any work of it.
_MOST_READ = 16
# PATH_MAX of limits.h
_MOST_PATH = 4096
_HINT = "build the image anew: disk-image build RECIPE --output LAYOUT"


class Kind(StrEnum):
    """What an entry is."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    DEVICE = "device"
    FIFO = "fifo"
    SOCKET = "socket"


_KINDS = {
    stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.FOLDER, stat.S_IFLNK: Kind.LINK, stat.S_IFBLK: Kind.DEVICE,
    stat.S_IFCHR: Kind.DEVICE, stat.S_IFIFO: Kind.FIFO, stat.S_IFSOCK: Kind.SOCKET,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One path. `size` in bytes is a file's; `content` is a file's fs-verity digest (hex) or a link's
    target; `mtime` in seconds; `xattrs` without those that overlayfs reads itself.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]


def entries(image: bytes) -> Mapping[str, Entry]:
    """Absolute path → entry, sorted by path. Raises InvalidDocument for what is no composefs image."""
    return dict(sorted(_Image(image).walk()))


@dataclass(frozen=True, slots=True)
class _Inode:
    """An inode as it stands: where its xattrs and what follows them are."""

    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    layout: int
    block: int
    xattrs_at: int
    data_at: int


class _Image:
    def __init__(self, image: bytes) -> None:
        self._image = image
        self._read = 0
        fields = _SUPER.unpack(self._bytes(_SUPERBLOCK, _SUPER.size))
        magic, bits, root = fields[0], fields[3], fields[5]
        if magic != _MAGIC or not 9 <= bits <= 16:
            raise _broken("no erofs superblock")
        self._block = 1 << bits
        # Of the inodes that have no room for one.
        self._time = fields[7]
        self._root = root
        self._inodes = fields[10] << bits
        self._shared = fields[11] << bits

    def walk(self) -> Iterator[tuple[str, Entry]]:
        """Every path with its entry, in no order."""
        pending = [("", self._root)]
        entered = {self._root}
        yield "/", self._entry(self._inode(self._root))
        while pending:
            parent, number = pending.pop()
            for name, child in self._folder(self._inode(number)):
                path = f"{parent}/{name}"
                if len(path) > _MOST_PATH:
                    raise _broken(f"a path of more than {_MOST_PATH} characters")
                inode = self._inode(child)
                # The root of a composefs has 256 whiteouts, so that no layer below shows its objects.
                if not parent and stat.S_ISCHR(inode.mode) and inode.block == 0:
                    continue
                if stat.S_ISDIR(inode.mode):
                    if child in entered:
                        raise _broken(f"{path!r} is a folder that is inside itself, or twice there")
                    entered.add(child)
                    pending.append((path, child))
                yield path, self._entry(inode)

    def _entry(self, inode: _Inode) -> Entry:
        kind = _KINDS.get(stat.S_IFMT(inode.mode))
        if kind is None:
            raise _broken(f"an inode of mode {inode.mode:o}")
        xattrs = self._xattrs(inode)
        content = ""
        if kind is Kind.FILE:
            content = self._content(inode, xattrs.get(_METACOPY))
        elif kind is Kind.LINK:
            content = _text(self._data(inode))
        return Entry(
            kind,
            stat.S_IMODE(inode.mode),
            inode.uid,
            inode.gid,
            inode.mtime,
            inode.size if kind is Kind.FILE else 0,
            content,
            tuple(sorted((name, value) for name, value in xattrs.items() if not name.startswith(_OVERLAY))),
        )

    def _content(self, inode: _Inode, metacopy: bytes | None) -> str:
        if metacopy is None:
            return fsverity.digest(self._data(inode))
        if len(metacopy) != _METACOPY_VALUE.size or metacopy[:4] != bytes((0, len(metacopy), 0, 1)):
            raise _broken(f"{_METACOPY} is {metacopy[:8].hex()}…, expected an fs-verity sha256")
        return metacopy[4:].hex()

    def _inode(self, number: int) -> _Inode:
        at = self._inodes + number * _SLOT
        (format,) = struct.unpack("<H", self._bytes(at, 2))
        if format & 1:
            _, count, mode, _, size, block, _, uid, gid, mtime, _, _ = _EXTENDED.unpack(
                self._bytes(at, _EXTENDED.size)
            )
            end = at + _EXTENDED.size
        else:
            _, count, mode, _, size, _, block, _, uid, gid, _ = _COMPACT.unpack(
                self._bytes(at, _COMPACT.size)
            )
            mtime = self._time
            end = at + _COMPACT.size
        length = 12 + (count - 1) * 4 if count else 0
        return _Inode(mode, uid, gid, mtime, size, format >> 1 & 7, block, end, end + length)

    def _data(self, inode: _Inode) -> bytes:
        """What a folder or a link holds, or a file of few bytes."""
        if inode.size == 0:
            return b""
        if inode.size > len(self._image):
            raise _broken(f"an inode of {inode.size} bytes in an image of {len(self._image)}")
        start = inode.block * self._block
        if inode.layout == _PLAIN:
            return self._bytes(start, inode.size)
        if inode.layout == _INLINE:
            tail = inode.size % self._block
            whole = inode.size - tail
            return (self._bytes(start, whole) if whole else b"") + self._bytes(inode.data_at, tail)
        raise _broken(f"content in data layout {inode.layout}, expected plain or inline")

    def _folder(self, inode: _Inode) -> Iterator[tuple[str, int]]:
        data = self._data(inode)
        for start in range(0, len(data), self._block):
            block = data[start : start + self._block]
            listed: list[tuple[int, int]] = []
            count = 1
            while len(listed) < count:
                if len(block) < _DIRENT.size * (len(listed) + 1):
                    raise _broken("a folder's block without all its entries")
                number, at, _, _ = _DIRENT.unpack_from(block, _DIRENT.size * len(listed))
                listed.append((number, at))
                # The first name starts where the entries end.
                count = listed[0][1] // _DIRENT.size
            ends = [at for _, at in listed[1:]] + [len(block)]
            for (number, at), end in zip(listed, ends, strict=True):
                if not at < end <= len(block):
                    raise _broken("a folder's entry without a name")
                name = _text(block[at:end].rstrip(b"\0"))
                if name in (".", ".."):
                    continue
                if not name or "/" in name or "\0" in name:
                    raise _broken(f"a folder's entry with the name {name!r}")
                yield name, number

    def _xattrs(self, inode: _Inode) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        at, end = inode.xattrs_at, inode.data_at
        if at == end:
            return found
        shared = self._bytes(at, end - at)[4]
        at += 12
        if at + 4 * shared > end:
            raise _broken("more shared xattrs than fit")
        for (number,) in struct.iter_unpack("<I", self._bytes(at, 4 * shared)):
            self._xattr(self._shared + 4 * number, found)
        at += 4 * shared
        while at < end:
            at = self._xattr(at, found)
        return found

    def _xattr(self, at: int, found: dict[str, bytes]) -> int:
        """Take in the xattr at `at`; returns where the next one is."""
        length: int
        size: int
        length, index, size = struct.unpack("<BBH", self._bytes(at, 4))
        if index not in _PREFIXES:
            raise _broken(f"an xattr with the name index {index}")
        name = _PREFIXES[index] + _text(self._bytes(at + 4, length))
        found[name] = self._bytes(at + 4 + length, size)
        return at + (4 + length + size + 3) // 4 * 4

    def _bytes(self, at: int, length: int) -> bytes:
        if at + length > len(self._image):
            raise _broken(f"{length} bytes at {at} are not in an image of {len(self._image)}")
        self._read += length
        if self._read > _MOST_READ * len(self._image):
            raise _broken("its inodes overlap")
        return self._image[at : at + length]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _broken(why: str) -> InvalidDocument:
    return InvalidDocument(f"root.cfs: not a composefs image: {why}", _HINT)
