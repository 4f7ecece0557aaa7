"""Debian's license names as SPDX license expressions.

Names: the machine-readable copyright format 1.0 (DEP-5), «License specification»; expressions: SPDX 2.3,
annex D. A name is translated only where it can mean one license: `MIT`, `Artistic` or an unversioned `GPL`
may each be several, so they stand for the text that the package gives.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import TypeAlias

# SPDX's own names that copyright files use, and below them DEP-5's; compared without regard to case.
_SPDX = """
    0BSD AFL-2.1 AFL-3.0 Apache-1.0 Apache-1.1 Apache-2.0 Artistic-2.0 Beerware BSD-2-Clause BSD-3-Clause
    BSD-4-Clause BSD-4-Clause-UC BSL-1.0 CC-BY-3.0 CC-BY-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC0-1.0 CDDL-1.0
    CPL-1.0 curl EPL-1.0 EPL-2.0 FSFAP FSFUL FSFULLR FTL ICU ISC MPL-1.0 MPL-1.1 MPL-2.0 MS-PL OFL-1.1
    OpenSSL PostgreSQL Python-2.0 QPL-1.0 Sleepycat Unicode-DFS-2015 Unicode-DFS-2016 Unlicense Vim W3C
    WTFPL X11 Zlib ZPL-2.1
"""
NAMES = {
    **{name.lower(): name for name in _SPDX.split()},
    "apache-2": "Apache-2.0",
    "cc0": "CC0-1.0",
    "expat": "MIT",
    "python": "Python-2.0",
    "qpl": "QPL-1.0",
}
_GNU = re.compile(
    r"(?P<name>a?gpl|lgpl|gfdl)(?P<niv>-niv)?"
    r"-(?P<version>\d(?:\.\d)?)(?P<later>\+|-or-later)?(?:-only)?"
)
_GNU_VERSIONS = {
    "gpl": ("1.0", "2.0", "3.0"),
    "lgpl": ("2.0", "2.1", "3.0"),
    "agpl": ("3.0",),
    "gfdl": ("1.1", "1.2", "1.3"),
}
EXCEPTIONS = {
    "linux-syscall-note": "Linux-syscall-note",
    "bison": "Bison-exception-2.2",
    "bison-2.2": "Bison-exception-2.2",
    "classpath": "Classpath-exception-2.0",
    "font": "Font-exception-2.0",
}
# «A or B, and C»: a comma binds less than both words (DEP-5, «Syntax»).
_OUTER = re.compile(r",\s*(and|or)\s+", re.IGNORECASE)
_INNER = re.compile(r"\s+(and|or)\s+", re.IGNORECASE)
_ATOM = re.compile(
    r"(?P<name>[^\s,|()]+)(?:\s+with\s+(?P<exception>[^\s,|()]+)\s+exception)?", re.IGNORECASE
)

# What stands for a license that SPDX has no name for; None when its text is not given.
Custom: TypeAlias = Callable[[str], str | None]


def conjuncts(synopsis: str, custom: Custom) -> tuple[str, ...] | None:
    """A License field's first line as the SPDX expressions that all apply; None where one of its names is
    neither SPDX's nor `custom`'s.
    """
    found = _joined(_OUTER.split(synopsis), lambda clause: _clause(clause, custom))
    if found is None:
        whole = custom(synopsis)
        return None if whole is None else (whole,)
    return found


def all_of(expressions: Iterable[str]) -> str:
    """The expression that asks for every one of them, each once, sorted."""
    found = sorted(set(expressions))
    return found[0].removeprefix("(").removesuffix(")") if len(found) == 1 else " AND ".join(found)


def reference(name: str, text: str) -> str:
    """The LicenseRef of a text; two texts never share one."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"LicenseRef-{re.sub('[^A-Za-z0-9.-]+', '-', name)[:64].strip('-') or 'license'}-{digest}"


def _clause(text: str, custom: Custom) -> tuple[str, ...] | None:
    def read(atom: str) -> tuple[str, ...] | None:
        found = _atom(atom, custom)
        return None if found is None else (found,)

    return _joined(_INNER.split(text), read)


def _joined(parts: list[str], read: Callable[[str], tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """`parts` alternate between operands and operators; «and» binds more than «or»."""
    alternatives: list[list[str]] = [[]]
    for index, part in enumerate(parts):
        if index % 2:
            if part.lower() == "or":
                alternatives.append([])
            continue
        operands = read(part.strip())
        if operands is None:
            return None
        alternatives[-1] += operands
    if len(alternatives) == 1:
        return tuple(alternatives[0])
    joined = dict.fromkeys(" AND ".join(dict.fromkeys(each)) for each in alternatives)
    return (f"({' OR '.join(joined)})",) if len(joined) > 1 else tuple(joined)


def _atom(text: str, custom: Custom) -> str | None:
    match = _ATOM.fullmatch(text)
    if match is None:
        return None
    license = NAMES.get(match["name"].lower()) or _gnu(match["name"])
    if match["exception"] is None:
        return license or custom(text)
    exception = EXCEPTIONS.get(match["exception"].lower())
    if license is None or exception is None:
        return custom(text)
    return f"{license} WITH {exception}"


def _gnu(name: str) -> str | None:
    match = _GNU.fullmatch(name.lower())
    if match is None:
        return None
    family = match["name"]
    version = match["version"] if "." in match["version"] else f"{match['version']}.0"
    if version not in _GNU_VERSIONS[family] or (match["niv"] and family != "gfdl"):
        return None
    # `GFDL-NIV`: without invariant sections.
    variant = "-no-invariants" if match["niv"] else ""
    return f"{family.upper()}-{version}{variant}-{'or-later' if match['later'] else 'only'}"
