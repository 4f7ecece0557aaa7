"""What an installed root must not carry into an image: the builder, the moment, and what is made again at
boot.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

# Of the builder: mmdebstrap copies these from the machine it runs on, or writes them for its own run. (The
# rootfs stage gives the image its own hostname.)
_BUILDER = (
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/0000*",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/hostname",
    "etc/resolv.conf",
    "var/lib/apt/extended_states",
)
# Of the moment: logs, random seeds, and caches that hold inode numbers and times.
_MOMENT = (
    "var/cache/apt/*",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists/*",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/log/*.log",
    "var/log/apt/*",
    "var/log/btmp",
    "var/log/journal/*",
    "var/log/lastlog",
    "var/log/wtmp",
    "etc/ssh/ssh_host_*",
)
# Backups that dpkg, debconf and the user tools keep of what they changed, and their lock files.
_BACKUPS = (
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "var/cache/debconf/*-old",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/triggers/Lock",
)
# Mounted over at boot, so that whatever is here would only hide.
_MOUNTED = ("dev/*", "proc/*", "run/*", "sys/*", "tmp/*", "var/tmp/*")
# Made by mmdebstrap for apt, also where the root has no apt.
_APT = ("etc/apt", "var/cache/apt", "var/lib/apt", "var/log/apt")

_PATTERNS = (*_BUILDER, *_MOMENT, *_BACKUPS, *_MOUNTED)


def left_out(root: Path) -> Callable[[str], bool]:
    """Whether a path of `root` stays out of the tree."""
    patterns = _PATTERNS if (root / "var/lib/dpkg/info/apt.list").exists() else (*_PATTERNS, *_APT)
    # Nearly every path differs from every pattern in its folder: one look-up settles it.
    by_folder: dict[str, list[str]] = {}
    for pattern in patterns:
        folder, _, name = pattern.rpartition("/")
        by_folder.setdefault(folder, []).append(name)

    def excluded(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return any(fnmatchcase(name, pattern) for pattern in by_folder.get(folder, ()))

    return excluded


def clean(root: Path) -> None:
    """Rewrite the files that are needed but carry the moment."""
    # Empty, not `uninitialized`: systemd makes an id at each boot without redoing the units' presets
    # (machine-id(5)), which would undo what the recipe enables and disables.
    _write(root / "etc/machine-id", "")
    shadow = root / "etc/shadow"
    if shadow.exists():
        _write(
            shadow,
            "".join(_without_date(line) for line in shadow.read_text("utf-8").splitlines(keepends=True)),
        )


def _without_date(line: str) -> str:
    """shadow(5): the third field is the day of the last password change; empty means that ageing is off."""
    name, password, _, rest = line.split(":", 3)
    return f"{name}:{password}::{rest}"


def _write(path: Path, text: str) -> None:
    # In place: keeps owner and mode.
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
