"""Two small roots and their metadata images as mkcomposefs 1.0.8 writes them.

`assets/*.cfs` are what it makes of these trees' dumps; tests/peers/test_metadata_reader.py makes them anew.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stages.composefs.dump import unescape
from stages.shared import fsverity
from supply_chain.erofs import Entry, Kind
from tests.stages.composefs_trees import CAPABILITY, EPOCH, Tree, file, folder, hardlink, symlink

ASSETS = Path(__file__).parent / "assets"

_PING = file("usr/bin/ping", b"ping" * 500, 0o755, capability=CAPABILITY)
# More names than one block of a folder has room for.
_MANY = [file(f"usr/share/{'a-long-name-' * 10}{number}", b"x" * number) for number in range(40)]
_COMMON = [
    folder("."),
    folder("etc"),
    folder("usr"),
    folder("usr/bin"),
    folder("var", mtime=EPOCH - 7),
    file("etc/empty", b""),
    file("etc/hostname", b"host\n"),
    symlink("bin", "usr/bin"),
    folder("usr/share"),
    *_MANY,
]
BEFORE: Tree = [
    *_COMMON,
    _PING,
    hardlink("usr/bin/ping4", _PING[0]),
    file("etc/motd", b"hello\n"),
    file("etc/shadow", b"root:*\n", 0o640),
    file("usr/bin/tool", b"old" * 100, 0o755),
    file("usr/bin/same-size", b"a" * 99, 0o755),
    file("var/dated", b"x", mtime=EPOCH - 1),
    symlink("etc/localtime", "../usr/share/zoneinfo/UTC"),
    file("etc/becomes-a-link", b"file\n"),
    file("gone", b"gone" * 99),
]
AFTER: Tree = [
    *_COMMON,
    file("usr/bin/ping", b"ping" * 500, 0o755),
    file("usr/bin/ping4", b"ping" * 500, 0o755, capability=CAPABILITY),
    file("etc/motd", b"hello, world\n"),
    (replace(file("etc/shadow", b"root:*\n", 0o640)[0], gid=70_000), b"root:*\n"),
    file("usr/bin/tool", b"new" * 200, 0o755),
    file("usr/bin/same-size", b"b" * 99, 0o700),
    file("var/dated", b"x", mtime=EPOCH - 2),
    symlink("etc/localtime", "../usr/share/zoneinfo/Europe/Berlin"),
    symlink("etc/becomes-a-link", "motd"),
    file("new\x1b[31m", b"odd name"),
]


def asset(name: str) -> bytes:
    """The metadata image of BEFORE (`before`) or AFTER."""
    return (ASSETS / f"{name}.cfs").read_bytes()


def stated(dump: bytes) -> dict[str, Entry]:
    """What a dump says, in the reader's terms."""
    found: dict[str, Entry] = {}
    links: dict[str, str] = {}
    for line in dump.splitlines():
        path, size, mode, _, uid, gid, _, mtime, payload, inline, digest, *xattrs = line.split(b" ")
        name = _text(path)
        if mode.startswith(b"@"):
            links[name] = _text(payload)
            continue
        kind = {0o100000: Kind.FILE, 0o40000: Kind.FOLDER, 0o120000: Kind.LINK}[int(mode, 8) & 0o170000]
        content = ""
        if kind is Kind.FILE:
            data = b"" if inline == b"-" else unescape(inline)
            content = fsverity.digest(data) if digest == b"-" else digest.decode()
        elif kind is Kind.LINK:
            content = _text(payload)
        pairs = [xattr.split(b"=", 1) for xattr in xattrs]
        found[name] = Entry(
            kind,
            int(mode, 8) & 0o7777,
            int(uid),
            int(gid),
            int(mtime.partition(b".")[0]),
            int(size) if kind is Kind.FILE else 0,
            content,
            tuple((_text(key), unescape(value)) for key, value in pairs),
        )
    return found | {name: found[target] for name, target in links.items()}


def _text(field: bytes) -> str:
    return unescape(field).decode("utf-8", "surrogateescape")
