"""kconfig: from fragments to a whole .config, and why an option did not stay as it was asked for.

The base is what `make tinyconfig` uses (kernel/configs/tiny-base.config and tiny.config, and the
architecture's own tiny.config): everything that can be off is off. The fragments come after it, all in one
`make allnoconfig` with KCONFIG_ALLCONFIG (Documentation/kbuild/kconfig.rst), so that an option which only a
fragment makes visible is off as well unless a fragment asks for it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.kernel_source import fragments
from stages.kernel_source.arch import Architecture
from stages.kernel_source.fragments import Request
from stages.kernel_source.make import Make
from stages.shared.job import Failure

# Options under which two builds differ, with the reason.
IRREPRODUCIBLE = {
    "GCC_PLUGIN_LATENT_ENTROPY": "seeds the kernel with random numbers made by the build",
    "LOCALVERSION_AUTO": "puts the state of a git checkout into the release",
    "MODULE_SIG": "signs modules with a random key made by the build",
    "RANDSTRUCT": "orders structures by random numbers made by the build",
}
_ENTRY = re.compile(r"^\s*(?:menu)?config\s+(\w+)\s*$")
_DEPENDS = re.compile(r"^\s+depends on\s+(.+?)\s*$")
_WORD = re.compile(r"[A-Za-z0-9_]+")


def configure(make: Make, architecture: Architecture, asked: Sequence[Sequence[Request]]) -> dict[str, str]:
    """Write the source tree's .config; returns its options that are set.

    Raises Failure when an option is not what its last fragment asks for, or makes builds differ.
    """
    base = ["kernel/configs/tiny-base.config", "kernel/configs/tiny.config"]
    own = f"arch/{architecture.source}/configs/tiny.config"
    if (make.source / own).exists():
        base.append(own)
    tiny = [fragments.parse((make.source / name).read_text(), name) for name in base]
    wanted = make.source / "wanted.config"
    wanted.write_text(fragments.to_config(fragments.merge([*tiny, *asked]).values()))
    make.run("allnoconfig", KCONFIG_ALLCONFIG=str(wanted))
    found = fragments.values((make.source / ".config").read_text())
    _check(make.source, list(fragments.merge(asked).values()), found)
    return found


def _check(source: Path, asked: Sequence[Request], found: Mapping[str, str]) -> None:
    unmet = fragments.unmet(asked, found)
    if unmet:
        known = _entries(source)
        lines = [f"{request.place}: {_reason(request, found, known)}" for request in unmet]
        for line in lines:
            print(line)
        more = f" (and {len(unmet) - 1} more, see the log)" if len(unmet) > 1 else ""
        raise Failure(
            lines[0] + more,
            "ask for what the option depends on as well, or drop the line",
            code="option",
            details=[request.option for request in unmet],
        )
    for option, reason in IRREPRODUCIBLE.items():
        if option in found:
            place = next((f"{request.place}: " for request in asked if request.option == option), "")
            raise Failure(
                f"{place}CONFIG_{option}={found[option]} {reason}: no two builds would be equal",
                f"ask for '# CONFIG_{option} is not set'",
                code="option",
                details=[option],
            )


def _reason(request: Request, found: Mapping[str, str], known: Mapping[str, str]) -> str:
    option = request.option
    text = f"CONFIG_{option}: expected {request.value}, found {found.get(option, 'n')}"
    if option not in known:
        near = difflib.get_close_matches(option, known, 1)
        return text + ": no such option" + (f", did you mean CONFIG_{near[0]}?" if near else "")
    needs = known[option]
    if not needs:
        return text
    off = sorted({word for word in _WORD.findall(needs) if word in known and word not in found})
    return text + f": it depends on {needs}" + (f"; off: {', '.join(off)}" if off else "")


def _entries(source: Path) -> dict[str, str]:
    """Every option of every Kconfig file, with its own `depends on` joined by &&."""
    entries: dict[str, list[str]] = {}
    for path in sorted(source.rglob("Kconfig*")):
        option = ""
        for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
            if match := _ENTRY.match(line):
                option = match[1]
                entries.setdefault(option, [])
            elif line[:1].isalpha():
                option = ""
            elif option and (match := _DEPENDS.match(line)):
                entries[option].append(match[1])
    return {option: " && ".join(needs) for option, needs in entries.items()}
