"""Debian's package relations (deb-control(5)) and version order (deb-version(7)), as locks need them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest

_RELATION = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9+.-]+)(?::[a-z0-9-]+)?"
    r"(?:\s*\(\s*(?P<operator><<|<=|=|>=|>>)\s*(?P<version>[^\s)]+)\s*\))?"
)
_PARTS = re.compile(r"(\D*)(\d*)")


@dataclass(frozen=True, slots=True)
class Relation:
    """One alternative of a clause: a package, and the versions of it that will do."""

    name: str
    operator: str = ""
    version: str = ""

    def allows(self, version: str) -> bool:
        """Whether this version of the package satisfies the relation."""
        if not self.operator:
            return True
        order = compare(version, self.version)
        return {"<<": order < 0, "<=": order <= 0, "=": order == 0, ">=": order >= 0, ">>": order > 0}[
            self.operator
        ]


def clauses(field: str) -> tuple[tuple[Relation, ...], ...]:
    """A Depends field as clauses that must all hold; one of each clause's alternatives is enough."""
    found: list[tuple[Relation, ...]] = []
    for clause in field.split(","):
        alternatives = (_RELATION.match(part.strip()) for part in clause.split("|"))
        relations = tuple(
            Relation(one["name"], one["operator"] or "", one["version"] or "") for one in alternatives if one
        )
        if relations:
            found.append(relations)
    return tuple(found)


def compare(left: str, right: str) -> int:
    """Negative, zero or positive as `left` is older than, equal to or newer than `right`."""
    epochs, versions = zip(*(_epoch(version) for version in (left, right)), strict=True)
    if epochs[0] != epochs[1]:
        return 1 if epochs[0] > epochs[1] else -1
    upstreams, revisions = zip(*(_revision(version) for version in versions), strict=True)
    return _compare(*upstreams) or _compare(*revisions)


def _epoch(version: str) -> tuple[int, str]:
    epoch, colon, rest = version.partition(":")
    return (int(epoch), rest) if colon and epoch.isdigit() else (0, version)


def _revision(version: str) -> tuple[str, str]:
    upstream, dash, revision = version.rpartition("-")
    # No revision counts as revision 0.
    return (upstream, revision) if dash else (version, "0")


def _compare(left: str, right: str) -> int:
    for (text, digits), (other_text, other_digits) in zip_longest(
        _PARTS.findall(left), _PARTS.findall(right), fillvalue=("", "")
    ):
        for a, b in zip_longest(map(_weight, text), map(_weight, other_text), fillvalue=0):
            if a != b:
                return 1 if a > b else -1
        difference = int(digits or 0) - int(other_digits or 0)
        if difference:
            return 1 if difference > 0 else -1
    return 0


def _weight(character: str) -> int:
    """A tilde sorts before the end of the part, letters before everything else."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256
