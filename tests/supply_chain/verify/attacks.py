"""Systematic changes of JSON documents and bytes, and what they are an attack on."""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from supply_chain.trust import Trust
from supply_chain.verify.policy import SignerPolicy

Json = dict[str, Any]
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Attack:
    """One changed input. `kind` is its class, `what` the one change.

    `bundle` is verified alone; `sbom` and `provenance` (predicates) are compared as if verified; `files`
    replace a signed layout's (None: the file is gone). `harmless` says why accepting it would be right:
    nothing that it means is changed. Everything else must be refused.
    """

    kind: str
    what: str
    bundle: bytes | None = None
    sbom: bytes | None = None
    provenance: bytes | None = None
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    trust: Trust | None = None
    policy: SignerPolicy | None = None
    lock: bytes | None = None
    harmless: str = ""


def flips(content: bytes, *, step: int = 1, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """One bit flipped in every `step`th byte."""
    chance = random.Random(seed)
    for at in range(seed % step, len(content), step):
        bit = chance.randrange(8)
        changed = bytearray(content)
        changed[at] ^= 1 << bit
        yield f"byte {at} bit {bit}", bytes(changed)


def cuts(content: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """The content up to somewhere."""
    for number in range(count):
        length = len(content) * number // count
        yield f"{length} bytes", content[:length]


def paths(value: object, at: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every value in a JSON document, with the way to it."""
    yield at, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths(item, (*at, index))


def leaves(value: object) -> Iterator[tuple[Path, object]]:
    """Those that hold no others."""
    return ((at, item) for at, item in paths(value) if not isinstance(item, dict | list))


def put(document: Json, at: Path, value: object) -> Json:
    """The document with another value there."""
    changed = copy.deepcopy(document)
    where: Any = changed
    for step in at[:-1]:
        where = where[step]
    where[at[-1]] = value
    return changed


def without(document: Json, at: Path) -> Json:
    """The document without what is there."""
    changed = copy.deepcopy(document)
    where: Any = changed
    for step in at[:-1]:
        where = where[step]
    del where[at[-1]]
    return changed


def get(document: Json, at: Path) -> Any:
    """What is there; KeyError and IndexError when nothing is."""
    where: Any = document
    for step in at:
        where = where[step]
    return where


def field_changes(document: Json, *, doubled: bool = True) -> Iterator[tuple[str, str, bytes]]:
    """(class, what, document) for every field removed, of another type, `doubled`; and one added."""
    for at, value in paths(document):
        name = "/".join(map(str, at))
        if at:
            yield "field removed", name, dump(without(document, at))
            for other in (None, True, 7, -1, "", "x", [], {}, [value], {"x": value}, str(value) + " "):
                if type(other) is not type(value) or other != value:
                    yield "field of another value", f"{name} = {other!r:.30}", dump(put(document, at, other))
        if isinstance(value, dict):
            yield "unknown field", name, dump(put(document, (*at, "unknownField"), "x"))
            for key in value if doubled else ():
                yield "key twice", f"{name}/{key}", _doubled(document, at, key)
        if isinstance(value, list):
            yield "list longer", name, dump(put(document, at, [*value, "x"]))
            if value:
                yield "list doubled", name, dump(put(document, at, value + value))


def swaps(document: Json, other: Json) -> Iterator[tuple[str, bytes]]:
    """Every part of the document in turn replaced by the other's, where they differ."""
    for at, value in paths(document):
        try:
            theirs = get(other, at)
        except (KeyError, IndexError):
            continue
        if at and theirs != value:
            yield "/".join(map(str, at)), dump(put(document, at, theirs))


def base64_changes(document: Json, at: Path, *, step: int, seed: int) -> Iterator[tuple[str, bytes, bytes]]:
    """(what, document, decoded) with a bit flipped in the bytes that a field has in base64."""
    for what, changed in flips(base64.b64decode(get(document, at)), step=step, seed=seed):
        yield what, dump(put(document, at, base64.b64encode(changed).decode())), changed


def dump(document: object) -> bytes:
    """JSON."""
    return json.dumps(document).encode()


def _doubled(document: Json, at: Path, key: str) -> bytes:
    """The key twice: first with another value, so that readers who take the last don't see a difference."""
    marked = put(document, (*at, f"\0{key}"), "another")
    where = get(marked, at)
    items = {f"\0{key}": where.pop(f"\0{key}"), **where}
    marked = put(marked, at, items) if at else items
    return dump(marked).replace(b"\\u0000", b"")
