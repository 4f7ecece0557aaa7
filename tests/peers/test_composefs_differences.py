"""Dumps on which mkcomposefs and cfsctl differ, and how (docs/explanation/composefs-agreement.md).

Our stage writes none of them. When a test fails here an encoder has changed: correct the page, and see
whether stages/composefs/dump.py must still keep away from the case.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.encoders import Encoder, Refused, differing

pytestmark = [
    pytest.mark.peers,
    pytest.mark.sandbox,
    pytest.mark.network,
    pytest.mark.timeout(1800),
]

ROOT = "/ 0 40755 2 0 0 0 1.0 - - -\n"
DIGEST = "ab" * 32
OBJECT = f"{DIGEST[:2]}/{DIGEST[2:]}"
MANY = "".join(f" user.x{number}=v" for number in range(130))


def line(
    path: str = "/a",
    *,
    size: int = 0,
    mode: str = "100644",
    nlink: int = 1,
    uid: int = 0,
    rdev: int = 0,
    mtime: str = "1.0",
    payload: str = "-",
    content: str = "-",
    digest: str = "-",
    more: str = "",
) -> str:
    """A line of composefs-dump(5)."""
    return f"{path} {size} {mode} {nlink} {uid} 0 {rdev} {mtime} {payload} {content} {digest}{more}\n"


def link(path: str, first: str) -> str:
    """A hard link's line."""
    return line(path, mode="@100644", mtime="0.0", payload=first)


def stored(path: str = "/a", *, size: int = 5000, payload: str = OBJECT, more: str = "") -> str:
    """A file whose content is an object."""
    return line(path, size=size, payload=payload, digest=DIGEST, more=more)


# Name: the dump, the first byte that differs, how many do.
DIFFERENT = {
    "nlink_is_not_the_number_of_names": (ROOT + stored() + link("/b", "/a"), 6342, 1),
    "inode_is_not_at_the_first_name": (
        ROOT + line("/a-b", nlink=2) + line(mode="40755", nlink=2) + link("/a/x", "/a-b"),
        6392,
        105,
    ),
    "overlay_whiteout": (ROOT + line(mode="20644"), 12, 707),
    "payload_with_a_leading_slash": (ROOT + stored(payload=f"/{OBJECT}"), 6438, 67),
    "payload_below_a_folder": (ROOT + stored(payload=f"objects/{OBJECT}"), 6338, 223),
    "object_of_no_bytes": (ROOT + stored(size=0), 6336, 362),
    "attribute_twice": (ROOT + stored(more=" user.a=2 user.a=1"), 6529, 1),
    "more_than_128_shared_attributes": (
        ROOT + "".join(stored(path, more=MANY) for path in ("/a", "/b")),
        6338,
        1369,
    ),
}  # fmt: skip

CFSCTL_REFUSES = {
    "target_of_1025_bytes": (line(size=1025, mode="120777", payload="x" * 1025), "exceeds limit 1024"),
    "time_before_1970": (line(mtime="-5.0"), "invalid digit"),
    "nanoseconds_of_a_second": (line(mtime="1.1000000000"), "Invalid mtime nanoseconds"),
    "inline_content_of_513_bytes": (line(size=513, content="x" * 513), "exceeded maximum length 512"),
    "digest_without_payload": (line(size=5000, digest=DIGEST), "cannot have fsverity digest"),
    "link_before_its_inode": (link("/a", "/b") + line("/b", nlink=2), "Hardlink target not found"),
    "blank_at_the_end": (line(more=" "), "Missing = in xattrs"),
    "device_number_of_33_bits": (line(mode="20644", rdev=1 << 32), "TryFromIntError"),
    "owner_of_33_bits": (line(uid=1 << 32), "number too large"),
}

MKCOMPOSEFS_REFUSES = {
    "content_of_another_size": (line(size=3, content="ab"), "Invalid content size 2"),
    "blank_line": ("\n" + line(), "Invalid empty path"),
    "name_of_256_bytes": (line("/" + "x" * 256), "Can't add child"),
    "attribute_of_32_kib": (line(more=" user.a=" + "x" * 32768), "Can't set xattr"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_images_differ(
    cfsctl_mkcomposefs: Encoder, mkcomposefs: Encoder, tmp_path: Path, name: str
) -> None:
    dump, first, count = DIFFERENT[name]
    theirs, _ = cfsctl_mkcomposefs.image(dump.encode(), tmp_path)
    found = differing(mkcomposefs.image(dump.encode(), tmp_path)[0], theirs)
    assert (found[:1], len(found)) == ([first], count)


def test_a_whiteout_is_equal_in_each_format_version(
    cfsctl_mkcomposefs: Encoder, mkcomposefs: Encoder, tmp_path: Path
) -> None:
    dump = DIFFERENT["overlay_whiteout"][0].encode()
    for version in ("--min-version=1", "--max-version=0"):
        image = mkcomposefs.image(dump, tmp_path, version)
        assert cfsctl_mkcomposefs.image(dump, tmp_path, version) == image


@pytest.mark.parametrize("name", CFSCTL_REFUSES)
def test_only_cfsctl_refuses(
    cfsctl_mkcomposefs: Encoder, mkcomposefs: Encoder, tmp_path: Path, name: str
) -> None:
    entry, why = CFSCTL_REFUSES[name]
    dump = (ROOT + entry).encode()
    assert mkcomposefs.image(dump, tmp_path)
    with pytest.raises(Refused, match=why):
        cfsctl_mkcomposefs.image(dump, tmp_path)


@pytest.mark.parametrize("name", MKCOMPOSEFS_REFUSES)
def test_only_mkcomposefs_refuses(
    cfsctl_mkcomposefs: Encoder, mkcomposefs: Encoder, tmp_path: Path, name: str
) -> None:
    entry, why = MKCOMPOSEFS_REFUSES[name]
    dump = (ROOT + entry).encode()
    assert cfsctl_mkcomposefs.image(dump, tmp_path)
    with pytest.raises(Refused, match=why):
        mkcomposefs.image(dump, tmp_path)


def test_mkcomposefs_reads_an_owner_of_33_bits_as_root(mkcomposefs: Encoder, tmp_path: Path) -> None:
    wrapped, root = ((ROOT + line(uid=uid)).encode() for uid in (1 << 32, 0))
    assert mkcomposefs.image(wrapped, tmp_path) == mkcomposefs.image(root, tmp_path)
