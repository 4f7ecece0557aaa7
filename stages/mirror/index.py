"""The repository's index, as apt reads it from a flat repository (`deb … ./`): sources.list(5)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stages.mirror.locked import Locked
from stages.shared import deb

# What the index says itself; a control file that has them too would be ambiguous.
_OURS = ("Filename", "Size", "SHA256")


def packages_index(files: Iterable[Locked], repository: Path) -> str:
    """One stanza a .deb: its control fields, Filename, Size, SHA256; sorted by name, version,
    architecture.
    """
    stanzas = []
    for file in sorted(files, key=lambda file: (file.name, file.version, file.arch)):
        if not file.pool_path.endswith(".deb"):
            continue
        control = deb.control(repository / file.pool_path)
        kept = _without(control, _OURS)
        stanzas.append(f"{kept}\nFilename: {file.pool_path}\nSize: {file.size}\nSHA256: {file.sha256}\n")
    return "\n".join(stanzas)


def _without(stanza: str, names: Iterable[str]) -> str:
    dropped = {name.lower() for name in names}
    lines: list[str] = []
    dropping = False
    for line in stanza.split("\n"):
        if not line.startswith((" ", "\t")):
            dropping = line.partition(":")[0].lower() in dropped
        if not dropping:
            lines.append(line)
    return "\n".join(lines)
