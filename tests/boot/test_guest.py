"""Guests under TCG: the root that the command line names comes up and can be written to; others are refused.

Every disk here is changed offline, behind the file system's back, as someone with the medium in hand would.
"""

from __future__ import annotations

import re

import pytest

from tests.boot.conftest import Ended, Laboratory

pytestmark = [pytest.mark.boot, pytest.mark.sandbox, pytest.mark.network, pytest.mark.timeout(900)]

ZEROS = "0" * 64


@pytest.fixture(scope="module")
def good(laboratory: Laboratory) -> Ended:
    return laboratory.boot()


def refusal(ended: Ended) -> str:
    """The line that init says; fails when the boot did not end with it."""
    assert ended.verdict["result"] == "refused", ended.console[-3000:]
    reason: str = ended.verdict["reason"]
    assert f"disk-image: refused: {reason}" in ended.console
    assert "trial:" not in ended.console, "nothing of the root ran"
    return reason


def test_the_right_root_is_verified_and_entered(laboratory: Laboratory, good: Ended) -> None:
    assert good.verdict["result"] == "booted", good.console[-3000:]
    assert good.verdict["digest"] == laboratory.digest()
    assert good.console.count("disk-image: root verified sha256:") == 1
    assert "disk-image: refused" not in good.console


@pytest.mark.parametrize(
    "what",
    [
        "mounts", "layers-hidden", "initramfs-gone", "system-mounts", "pid-1", "signals-default",
        "environment",
        "read", "chown-owner", "chown-content", "chown-copies-metadata-only", "append", "create",
        "rename-folder", "hard-link", "unlink", "overwrite", "mode-with-setuid",
    ],
)  # fmt: skip
def test_in_the_writable_root(good: Ended, what: str) -> None:
    """`chown-*`: a chown copies up a metacopy file, whose content stays the verified object's."""
    said = [line.strip() for line in good.console.splitlines() if f"trial: {what} " in line]
    assert said == [f"trial: {what} ok"], good.console[-3000:]


def test_an_object_changed_offline_is_refused_when_boot_reads_it(laboratory: Laboratory) -> None:
    ended = laboratory.boot("flip-start", path="usr/bin/dash")
    assert refusal(ended) == "expected /sbin/init to start, found: Input/output error"
    assert re.search(r"fs-verity \(vda, inode \d+\): FILE CORRUPTED! pos=0", ended.console)


def test_an_object_swapped_for_another_valid_one_is_refused(laboratory: Laboratory) -> None:
    ended = laboratory.boot("swap-object", path="usr/bin/dash", donor="usr/bin/cat")
    assert refusal(ended) == "expected /sbin/init to start, found: Input/output error"
    assert re.search(r"overlayfs: lower file '[0-9a-f]{62}' has the wrong fs-verity digest", ended.console)


def test_an_object_without_verity_is_refused(laboratory: Laboratory) -> None:
    ended = laboratory.boot("object-without-verity", path="usr/bin/dash")
    assert refusal(ended) == "expected /sbin/init to start, found: Input/output error"
    assert re.search(r"overlayfs: lower file '[0-9a-f]{62}' has no fs-verity digest", ended.console)


def test_systemd_changed_offline_is_refused(quick: Laboratory) -> None:
    systemd = "usr/lib/systemd/systemd"
    ended = quick.boot("flip-start", path=systemd, reached="Reached target multi-user.target")
    assert refusal(ended) == "expected /sbin/init to start, found: Input/output error"
    assert "systemd[1]" not in ended.console


def test_a_later_block_of_systemd_changed_offline_ends_the_boot(quick: Laboratory) -> None:
    """The program starts, and dies of SIGBUS at the page that can't be verified."""
    systemd = "usr/lib/systemd/systemd"
    ended = quick.boot("flip-dynamic", path=systemd, reached="Reached target multi-user.target")
    assert ended.verdict["result"] == "panic", ended.console[-3000:]
    assert "Attempted to kill init" in ended.verdict["reason"]
    assert re.search(r"fs-verity \(vda, inode \d+\): FILE CORRUPTED!", ended.console)


def test_the_metadata_image_replaced_by_another_valid_one_is_refused(laboratory: Laboratory) -> None:
    expected, found = laboratory.digest(), laboratory.digest("composefs-other")
    assert expected != found
    ended = laboratory.boot("swap-metadata")
    assert (
        refusal(ended)
        == f"the metadata image is another one: expected sha256:{expected}, found sha256:{found}"
    )


def test_the_metadata_image_changed_offline_is_refused(laboratory: Laboratory) -> None:
    ended = laboratory.boot("flip-metadata")
    assert re.fullmatch(r"mount erofs /proc/self/fd/\d+ on /layers/metadata: .*", refusal(ended))
    assert re.search(r"fs-verity \(vda, inode \d+\): FILE CORRUPTED! pos=0", ended.console)


def test_the_metadata_image_without_verity_is_refused(laboratory: Laboratory) -> None:
    said = refusal(laboratory.boot("metadata-without-verity"))
    assert said == "expected fs-verity on the metadata image, found a file without it"


def test_a_wrong_digest_on_the_command_line_is_refused(laboratory: Laboratory) -> None:
    digest = laboratory.digest()
    said = refusal(laboratory.boot(words={digest: ZEROS}))
    assert said.startswith(f"expected the metadata image {ZEROS}.cfs on the disk, found ")
    assert f"{digest}.cfs" in said


def test_another_valid_image_of_the_disk_is_refused_under_this_digest(laboratory: Laboratory) -> None:
    other = laboratory.digest("composefs-other")
    said = refusal(laboratory.boot("swap-metadata", words={laboratory.digest(): other}))
    assert said.startswith(f"expected the metadata image {other}.cfs on the disk, found ")


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("", "found none"),
        (f"composefs={ZEROS} composefs={ZEROS}", "found 2"),
        ("composefs=f00", "found composefs=f00"),
    ],
    ids=["missing", "twice", "malformed"],
)
def test_a_command_line_without_one_digest_is_refused(laboratory: Laboratory, word: str, found: str) -> None:
    ended = laboratory.boot(words={f"composefs={laboratory.digest()}": word})
    assert refusal(ended).endswith(found)


def test_a_machine_without_the_disk_is_refused(laboratory: Laboratory) -> None:
    said = refusal(laboratory.boot("another-label"))
    assert said == "expected a disk with the label disk-image within 10 s, found only: vda"
