"""Configuration fragments: read, merged, and held against what kconfig made of them.

The file format is .config's (Documentation/kbuild/kconfig-language.rst, scripts/kconfig/confdata.c); the
merge is that of scripts/kconfig/merge_config.sh: of two lines about one option the later one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.shared.job import Failure

_SET = re.compile(r'CONFIG_(\w+)=(y|m|n|-?[0-9]+|0[xX][0-9A-Fa-f]+|"(?:[^"\\]|\\.)*")')
_UNSET = re.compile(r"# CONFIG_(\w+) is not set")
# A line that means to switch an option off, and that kconfig would take for a comment.
_ALMOST_UNSET = re.compile(r"#\s*CONFIG_\w+\s+is\s+not\s+set\b.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """A fragment's line. `option` is without CONFIG_, `value` as kconfig writes it, `n` for «not set»."""

    option: str
    value: str
    fragment: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.fragment}:{self.line}"


def parse(text: str, fragment: str) -> list[Request]:
    """The requests of one fragment (or of a .config). Raises Failure naming the line that is neither an
    option, a comment nor empty.
    """
    requests = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if match := _SET.fullmatch(line):
            requests.append(Request(match[1], match[2], fragment, number))
        elif match := _UNSET.fullmatch(line):
            requests.append(Request(match[1], "n", fragment, number))
        elif _ALMOST_UNSET.fullmatch(line) or (line and not line.startswith("#")):
            raise Failure(
                f"{fragment}:{number}: expected CONFIG_NAME=value, '# CONFIG_NAME is not set' or a comment, "
                f"found {line[:80]!r}",
                'values are y, m, n, a number, 0x… or "text"; comments have a line of their own',
            )
    return requests


def merge(fragments: Iterable[Sequence[Request]]) -> dict[str, Request]:
    """The last request for each option, in the order in which these last requests were made."""
    merged: dict[str, Request] = {}
    for fragment in fragments:
        for request in fragment:
            merged.pop(request.option, None)
            merged[request.option] = request
    return merged


def to_config(requests: Iterable[Request]) -> str:
    """The requests as a .config."""
    return "".join(
        f"# CONFIG_{request.option} is not set\n"
        if request.value == "n"
        else f"CONFIG_{request.option}={request.value}\n"
        for request in requests
    )


def values(config: str, name: str = ".config") -> dict[str, str]:
    """What a .config says: option → value, without those not set: `n` and absence are the same."""
    return {request.option: request.value for request in parse(config, name) if request.value != "n"}


def unmet(requested: Iterable[Request], found: Mapping[str, str]) -> list[Request]:
    """The requests that `found` does not fulfil; an option asked to be off may also be absent."""
    return [request for request in requested if found.get(request.option, "n") != request.value]
