"""What a machine must give the sandbox, without starting one: runc, a range of ids, scratch space."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines import sandbox
from pipelines.errors import DiskImageError
from pipelines.scratch import ENOUGH_FREE_MEMORY, free_memory, is_tmpfs, scratch_base
from pipelines.store import Store


def test_a_missing_runc_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "host_path", lambda: "/nowhere")
    with pytest.raises(DiskImageError, match="runc: not found") as caught:
        sandbox.find_runc()
    assert caught.value.hint == "install it: apt-get install runc uidmap"


@pytest.mark.parametrize("owner", ["someone", "1000"], ids=["by name", "by number"])
def test_the_first_range_that_is_large_enough_is_taken(tmp_path: Path, owner: str) -> None:
    lines = f"other:100000:65536\n{owner}:165536:1000\n{owner}:200000:65536\n{owner}:300000:65536\n"
    (tmp_path / "subuid").write_text(lines)
    assert sandbox.subordinate("u", "someone", 1000, tmp_path) == sandbox.Range(200000, 65536)


@pytest.mark.parametrize(
    "text", [None, "", "other:100000:65536\n", "someone:1:5\n", "someone:x:65536\nnonsense\n"]
)
def test_without_a_range_the_exact_usermod_command_is_told(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "subuid").write_text(text)
    with pytest.raises(DiskImageError, match="no range of 65536 ids for user someone") as caught:
        sandbox.subordinate("u", "someone", 1000, tmp_path)
    first = 165536 if text and "other" in text else 100000
    ids = f"{first}-{first + 65535}"
    assert caught.value.hint == f"sudo usermod --add-subuids {ids} --add-subgids {ids} someone"


def test_free_ranges_lie_beyond_everyone_s_in_both_files(tmp_path: Path) -> None:
    (tmp_path / "subuid").write_text("a:100000:65536\n")
    (tmp_path / "subgid").write_text("a:100000:65536\nb:300000:100\n")
    assert "300100-365635" in sandbox.add_ranges_command("c", tmp_path)


def test_scratch_goes_to_tmpdir_when_it_is_set(tmp_path: Path) -> None:
    assert scratch_base(Store(tmp_path), {"TMPDIR": str(tmp_path)}) == tmp_path


def test_a_tmpdir_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskImageError, match="TMPDIR=/nowhere"):
        scratch_base(Store(tmp_path), {"TMPDIR": "/nowhere"})


def test_scratch_goes_to_the_store_where_shared_memory_is_no_tmpfs(tmp_path: Path) -> None:
    assert scratch_base(Store(tmp_path / "store"), {}, tmp_path) == tmp_path / "store" / "work"


def test_scratch_goes_to_roomy_shared_memory(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    roomy = (
        is_tmpfs(shared)
        and shutil.disk_usage(shared).free >= 4 << 30
        and free_memory() >= ENOUGH_FREE_MEMORY
    )
    expected = shared if roomy else tmp_path / "work"
    assert scratch_base(Store(tmp_path), {}) == expected
