"""A package's machine-readable copyright file: which licenses it names, and the texts it gives.

Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/. A file speaks for its whole
source package, so what it says is the most that a binary package can be under.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from stages.sbom import licenses

NOASSERTION = "NOASSERTION"
# The largest in Debian have a few hundred kilobytes.
MOST_BYTES = 2 << 20
_FIELD = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9-]*):(?P<value>.*)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u2028\u2029\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Declared:
    """An SPDX expression (or NOASSERTION) and the texts of the LicenseRefs in it: id → (name, text)."""

    expression: str = NOASSERTION
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def declared(content: bytes) -> Declared:
    """What a copyright file declares; NOASSERTION for one that is not machine-readable, too large, or names
    a license that it neither describes nor SPDX knows.
    """
    if len(content) > MOST_BYTES:
        return Declared()
    paragraphs = _paragraphs(content.decode("utf-8", "replace"))
    if not paragraphs or "copyright-format" not in paragraphs[0].get("format", ""):
        return Declared()
    texts: dict[str, str] = {}
    wanted: list[str] = []
    for index, paragraph in enumerate(paragraphs):
        synopsis, _, folded = paragraph.get("license", "").partition("\n")
        synopsis = " ".join(synopsis.split())
        if not synopsis:
            continue
        if text := _unfolded(folded):
            texts.setdefault(synopsis.lower(), text)
        if index == 0 or "files" in paragraph:
            wanted.append(synopsis)
    used: dict[str, tuple[str, str]] = {}

    def custom(name: str) -> str | None:
        text = texts.get(name.lower())
        if text is None:
            return None
        reference = licenses.reference(name, text)
        used[reference] = (name, text)
        return reference

    stated: set[str] = set()
    for synopsis in dict.fromkeys(wanted):
        found = licenses.conjuncts(synopsis, custom)
        if found is None:
            return Declared()
        stated.update(found)
    if not stated:
        return Declared()
    expression = licenses.all_of(stated)
    named = set(re.findall(r"LicenseRef-[A-Za-z0-9.-]+", expression))
    return Declared(expression, {each: used[each] for each in sorted(named)})


def _paragraphs(text: str) -> list[dict[str, str]]:
    """Field names in lower case → values, folded lines with their newline; what is no field is left out."""
    found: list[dict[str, str]] = []
    current: dict[str, str] = {}
    name = ""
    for line in [*_CONTROL.sub(" ", text.replace("\r\n", "\n")).split("\n"), ""]:
        if not line.strip():
            if current:
                found.append(current)
            current, name = {}, ""
        elif line.startswith("#"):
            continue
        elif line[0] in " \t":
            if name:
                current[name] += "\n" + line
        elif match := _FIELD.match(line):
            name = match["name"].lower()
            current[name] = match["value"].strip()
    return found


def _unfolded(folded: str) -> str:
    """One space is the marker of a folded line, a lone dot an empty line."""
    lines = [line[1:].rstrip() for line in folded.split("\n")]
    return "\n".join("" if line.strip() == "." else line for line in lines).strip("\n")
