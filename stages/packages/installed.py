"""What dpkg says is installed, against what was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stages.shared import deb
from stages.shared.job import Failure


def check_installed(root: Path, packages: Iterable[str]) -> None:
    """Raise Failure naming each package that is missing, surplus, of another version or not configured."""
    wanted = set(packages)
    found = installed(root / "var/lib/dpkg/status")
    configured = {name for name, status in found.items() if status == "install ok installed"}
    half = [f"{name} is «{status}»" for name, status in sorted(found.items()) if name not in configured]
    missing = [f"{name} is missing" for name in sorted(wanted - found.keys())]
    surplus = [f"{name} was not asked for" for name in sorted(found.keys() - wanted)]
    if wrong := [*missing, *surplus, *half]:
        raise Failure(
            "the root's packages are not the locked ones: " + "; ".join(wrong),
            "resolve the recipe's packages again: disk-image lock",
            details=wrong,
        )


def installed(status: Path) -> dict[str, str]:
    """dpkg's database as `name:arch=version` → status."""
    found: dict[str, str] = {}
    for stanza in status.read_text("utf-8").split("\n\n"):
        if stanza.strip():
            package = deb.fields(stanza.strip("\n"))
            found[f"{package['Package']}:{package['Architecture']}={package['Version']}"] = package["Status"]
    return found
