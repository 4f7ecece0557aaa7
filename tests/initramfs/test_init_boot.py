"""PID 1's steps without being PID 1: their order, and that every failure ends in one line and no power."""

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from initramfs import disk, kernel_modules, libc, main, mounts, switch
from initramfs.refusal import Refused

DIGEST = "ab" * 32
STEPS = (
    (mounts, "mount_system"),
    (kernel_modules, "load_all"),
    (disk, "find"),
    (mounts, "mount_disk"),
    (mounts, "mount_metadata"),
    (mounts, "mount_root"),
    (mounts, "leave_layers"),
    (mounts, "move_system"),
    (switch, "enter"),
    (switch, "execute_init"),
)


class PoweredOff(Exception):
    """What stands for the machine's end."""


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Every step, the lines said and the power-off, in the order they happen; nothing touches the system."""
    done: list[str] = []

    def step(name: str) -> Callable[..., str]:
        def run(*arguments: object) -> str:
            done.append(name)
            return "/dev/vda"

        return run

    def power_off() -> NoReturn:
        done.append("power off")
        raise PoweredOff

    for module, name in STEPS:
        monkeypatch.setattr(module, name, step(name))
    monkeypatch.setattr(main, "say", done.append)
    monkeypatch.setattr(libc, "power_off", power_off)
    line = tmp_path / "cmdline"
    line.write_text(f"quiet composefs={DIGEST}\n")
    monkeypatch.setattr("builtins.open", lambda path: os.fdopen(os.open(line, os.O_RDONLY)))
    return done


def test_the_steps_in_their_order(record: list[str]) -> None:
    main.boot()
    names = [name for _, name in STEPS]
    assert record == [*names[:6], f"root verified sha256:{DIGEST}", *names[6:]]


@pytest.mark.parametrize("broken", STEPS, ids=[name for _, name in STEPS])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refused("expected this, found that"), "refused: expected this, found that"),
        (
            OSError(errno.EIO, "mount ext4 /dev/vda: Input/output error"),
            "refused: mount ext4 /dev/vda: Input/output error",
        ),
        (OSError(errno.ENOENT, "No such file or directory", "/x"), "refused: No such file or directory: /x"),
        (ValueError("two\nlines"), "refused: ValueError: two lines"),
        (KeyboardInterrupt(), "refused: KeyboardInterrupt:"),
    ],
    ids=["refused", "system-call", "missing-file", "defect", "ctrl-alt-del"],
)
def test_any_failure_refuses_and_powers_off(
    record: list[str],
    monkeypatch: pytest.MonkeyPatch,
    broken: tuple[object, str],
    error: BaseException,
    said: str,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(*broken, fail)
    with pytest.raises(PoweredOff):
        main.main()
    assert record[-2:] == [said, "power off"]
    verified = f"root verified sha256:{DIGEST}" in record
    assert verified == (broken[1] in ("leave_layers", "move_system", "enter", "execute_init"))


def test_the_documented_steps_are_the_numbered_lines() -> None:
    source = Path(main.__file__).read_text()
    listed = [line.split()[0] for line in (main.__doc__ or "").splitlines() if line.startswith("    ")]
    marked = [line.rpartition("# ")[2] for line in source.splitlines() if line.rpartition("# ")[2].isdigit()]
    assert listed == marked == [str(number) for number in range(1, len(listed) + 1)]


def test_init_imports_only_what_the_initramfs_holds() -> None:
    built_in_or_listed = {"ctypes", "errno", "fcntl", "os", "stat", "struct", "time"}
    for path in Path(main.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found = {node.module or ""}
            else:
                continue
            assert {name for name in found if name.partition(".")[0] != "initramfs"} <= built_in_or_listed, (
                path
            )
