"""WWW-Authenticate: the challenges of a 401 (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_SCHEME = re.compile(rf"[ \t,]*({_TOKEN})")
# A parameter belongs to the scheme before it; a token without `=` starts the next challenge.
_PARAMETER = re.compile(rf"[ \t,]*({_TOKEN})[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|({_TOKEN}))")
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
# More than any registry sends; a longer header is not worth reading.
_LIMIT = 8192


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme in lower case, with its parameters (names in lower case)."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Every challenge of these header lines, in their order; what breaks the grammar ends its line."""
    return [challenge for header in headers if len(header) <= _LIMIT for challenge in _parse(header)]


def _parse(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = 0
    while scheme := _SCHEME.match(header, at):
        at = scheme.end()
        if token68 := _TOKEN68.match(header, at):
            at = token68.end()
            found.append(Challenge(scheme[1].lower()))
            continue
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, at):
            quoted, plain = parameter[2], parameter[3]
            parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if plain is None else plain
            at = parameter.end()
        found.append(Challenge(scheme[1].lower(), parameters))
    return found
