"""Debian packages as SPDX elements: what the lock says of their files, and what they say of themselves.

Control fields: deb-control(5), and dpkg's status file, which holds the same stanzas of what is installed.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.sbom import spdx
from stages.sbom.copyright import MOST_BYTES, NOASSERTION, Declared, declared
from stages.sbom.spdx import Element, Purpose
from stages.shared import deb, purl
from stages.shared.job import Failure

STATUS = "var/lib/dpkg/status"
_DOC = re.compile(r"usr/share/doc/(?P<package>[^/]+)(?P<copyright>/copyright)?")
_MAINTAINER = re.compile(r"(?P<name>[^<>]*)<(?P<mail>[^<>]*)>.*")
# Addresses of lists and teams; a person's is a supplier of another kind (SPDX 2.3, clause 7.5).
_TEAM = re.compile(
    r"\b(team|group|maintainers|maintenance|developers|maint)\b|@(alioth-)?lists\.|@packages\.|@tracker\.",
    re.IGNORECASE,
)
_MOST_TEXT = 500


@dataclass(frozen=True, slots=True)
class Locked:
    """A package as the lock names it; `sha256` (hex) is its file's."""

    name: str
    version: str
    arch: str
    sha256: str

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Locked:
        """From the plan's parameters."""
        return cls(given["name"], given["version"], given["arch"], given["sha256"])

    def __str__(self) -> str:
        return f"{self.name}:{self.arch}={self.version}"


@dataclass(slots=True)
class Contents:
    """What is of interest in a tree or in packages: the paths of files, and documentation by package."""

    paths: set[str] = field(default_factory=set)
    copyrights: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    status: bytes | None = None

    def read(self, archive: tarfile.TarFile, until: str | None = None) -> None:
        """Take in a tar of the root, or of one package's files: all of it, or as far as the copyright file
        of the package `until`.
        """
        for member in archive:
            path = posixpath.normpath(member.name)
            if member.isreg() or member.issym():
                self.paths.add(path)
            if path == STATUS and member.isreg():
                self.status = _content(archive, member)
            found = _DOC.fullmatch(path)
            if found is None:
                continue
            if found["copyright"] and member.isreg() and member.size <= MOST_BYTES:
                self.copyrights[found["package"]] = _content(archive, member)
            elif not found["copyright"] and member.issym():
                # A package may share the documentation of another of its source.
                self.links[found["package"]] = posixpath.basename(member.linkname)
            if until is not None and until in self.copyrights:
                return

    def license(self, package: str) -> Declared:
        """What a package's copyright file declares."""
        content = self.copyrights.get(package)
        if content is None:
            content = self.copyrights.get(self.links.get(package, ""))
        return Declared() if content is None else declared(content)


def installed(contents: Contents, locked: Iterable[Locked], distro: str) -> list[tuple[Element, Element]]:
    """Each package of the root and its source. Raises Failure unless dpkg's database names exactly
    `locked`.
    """
    stanzas = _stanzas(contents.status or b"")
    wanted = {str(each): each for each in locked}
    if stanzas.keys() != wanted.keys():
        surplus = sorted(stanzas.keys() - wanted.keys()) or "none"
        missing = sorted(wanted.keys() - stanzas.keys()) or "none"
        raise Failure(
            f"the root's packages are not the locked ones: not locked: {surplus}; not installed: {missing}",
            "build the root again",
        )
    return [
        _pair(each, stanzas[key], contents.license(each.name), distro)
        for key, each in sorted(wanted.items())
    ]


def unpacked(
    repository: Path, locked: Iterable[Locked], distro: str
) -> list[tuple[Element, Element, frozenset[str]]]:
    """Each package of a mirror's repository, its source, and the paths of its files."""
    index = _index(repository)
    every = Contents()
    paths: dict[Locked, frozenset[str]] = {}
    for each in locked:
        every.paths = set()
        with deb.data(repository / index[str(each)]["Filename"]) as archive:
            every.read(archive)
        paths[each] = frozenset(every.paths)
    return [
        (*_pair(each, index[str(each)], every.license(each.name), distro), found)
        for each, found in paths.items()
    ]


def described(repository: Path, locked: Iterable[Locked], distro: str) -> list[tuple[Element, Element]]:
    """Each package of a mirror's repository and its source. Of its files only the copyright is looked for: a
    kernel's may be a hundred times as large.
    """
    index = _index(repository)
    found = []
    for each in locked:
        contents = Contents()
        with deb.data(repository / index[str(each)]["Filename"]) as archive:
            contents.read(archive, until=each.name)
        found.append(_pair(each, index[str(each)], contents.license(each.name), distro))
    return found


def tools(locked: Iterable[Locked]) -> list[Element]:
    """Packages that only ran: the lock is all that is known of them. They may be of several releases."""
    return [_element(each, None) for each in locked]


def binary(locked: Locked, stanza: Mapping[str, str], license: Declared, distro: str) -> Element:
    """A binary package as the lock, its control fields and its copyright file describe it."""
    name, version = _source(stanza)
    return _element(
        locked,
        distro,
        supplier=supplier(stanza.get("Maintainer", "")),
        source_info=f"built from the source package {name} {version}",
        license=license,
    )


def source(stanza: Mapping[str, str], distro: str) -> Element:
    """The source package that a binary package was built from; the lock holds no file of it."""
    name, version = _source(stanza)
    return Element(
        id=spdx.identifier("Source", name, version),
        name=name,
        version=version,
        purl=purl.deb(name, version, purl.SOURCE, distro),
        supplier=supplier(stanza.get("Maintainer", "")),
        purpose=Purpose.SOURCE,
    )


def supplier(maintainer: str) -> str:
    """A Maintainer field (`Name <address>`) as SPDX writes an actor."""
    found = _MAINTAINER.fullmatch(_line(maintainer))
    # Parentheses enclose the address there.
    name = re.sub(r"[()]", "", found["name"]).strip() if found else ""
    mail = re.sub(r"[()\s]", "", found["mail"]) if found else ""
    if not name:
        return NOASSERTION
    kind = "Organization" if _TEAM.search(f"{name} {mail}") else "Person"
    return f"{kind}: {name} ({mail})" if mail else f"{kind}: {name}"


def _pair(
    locked: Locked, stanza: Mapping[str, str], license: Declared, distro: str
) -> tuple[Element, Element]:
    return binary(locked, stanza, license, distro), source(stanza, distro)


def _element(locked: Locked, distro: str | None, **more: Any) -> Element:
    return Element(
        id=spdx.identifier("Package", locked.name, locked.version, locked.arch, digest=locked.sha256),
        name=locked.name,
        version=locked.version,
        purl=purl.deb(locked.name, locked.version, locked.arch, distro),
        sha256=locked.sha256,
        **more,
    )


def _source(stanza: Mapping[str, str]) -> tuple[str, str]:
    """`Source: name (version)`; without a version the package's own, without the field its own name too."""
    name, _, version = _line(stanza.get("Source", "")).partition(" ")
    return name or stanza["Package"], version.strip("() ") or stanza["Version"]


def _line(text: str) -> str:
    """What a field says, on one line and of bounded length."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text).split())[:_MOST_TEXT]


def _index(repository: Path) -> dict[str, dict[str, str]]:
    return _stanzas((repository / "Packages").read_bytes())


def _stanzas(content: bytes) -> dict[str, dict[str, str]]:
    """`name:arch=version` → control fields, of the packages that are there."""
    found: dict[str, dict[str, str]] = {}
    for text in re.split(r"\n\n+", content.decode("utf-8", "replace")):
        if not text.strip("\n"):
            continue
        stanza = deb.fields(text.strip("\n"))
        absent = [name for name in ("Package", "Version", "Architecture") if name not in stanza]
        if absent:
            raise Failure(
                f"a package's control stanza has no {', '.join(absent)}: {text[:60]!r}",
                "the package database is damaged; build the root again",
            )
        found[f"{stanza['Package']}:{stanza['Architecture']}={stanza['Version']}"] = stanza
    return found


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()
