"""Which source package each path of a root belongs to, from the dpkg database inside it.

Formats: deb822 stanzas in `status` (deb-control(5)); `info/NAME.list` or, for packages that are Multi-Arch:
same, `info/NAME:ARCH.list`, one absolute path a line; `diversions`, three lines each: from, to, package or
`:` for a local one (dpkg-divert(1)).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from stages.shared.job import Failure

DATABASE = "var/lib/dpkg"
NOBODY = "-"
_STATUS = f"{DATABASE}/status"
_DIVERSIONS = f"{DATABASE}/diversions"
_INFO = f"{DATABASE}/info/"
# As path_resolution(7): the kernel follows at most 40 links in one path.
_MOST_LINKS = 40

Read = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True)
class _Package:
    name: str
    arch: str
    source: str
    conffiles: Mapping[str, str]


def source_packages(paths: Mapping[str, str | None], read: Read) -> dict[str, str]:
    """Path → source package's name, for every path of the root that an installed package ships.

    `paths` are all paths of the root (relative, without `./`), each with its text if it is a symbolic link
    and None otherwise; `read` gives a regular file's content, None when there is no such file. Paths of the
    lists are followed through the root's links to directories (merged /usr) and through diversions. Where
    several packages list a path (directories, mostly), the smallest source name is the owner.

    Left out, because they are no package's content: dpkg's own database, and configuration files that are
    not what their package shipped. A root without a dpkg database has no packages.
    """
    status = read(_STATUS)
    if status is None:
        return {}
    resolve = _Resolver(paths)
    diversions = _diversions(read(_DIVERSIONS) or b"")
    owners: dict[str, str] = {}
    for package in _packages(status):
        listed = read(f"{_INFO}{package.name}.list")
        if listed is None:
            listed = read(f"{_INFO}{package.name}:{package.arch}.list")
        if listed is None:
            raise Failure(
                f"dpkg database: no list of the files of {package.name}:{package.arch}",
                "the root's dpkg database is incomplete; build the root again",
            )
        for line in listed.decode("utf-8", "surrogateescape").split("\n"):
            if line in ("", "/."):
                continue
            by, elsewhere = diversions.get(line, ("", ""))
            path = resolve(elsewhere if elsewhere and by != package.name else line)
            if path not in paths:
                continue
            owner = owners.get(path)
            if owner is None or package.source < owner:
                owners[path] = package.source
        for shipped, md5 in package.conffiles.items():
            path = resolve(shipped)
            content = read(path)
            if content is None:
                continue
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
                owners.setdefault(path, package.source)
            else:
                owners.pop(path, None)
    return {path: owner for path, owner in owners.items() if not path.startswith(DATABASE + "/")}


class _Resolver:
    """Listed path → path of the root: links are followed in all components but the last."""

    def __init__(self, paths: Mapping[str, str | None]) -> None:
        self._paths = paths
        self._parents: dict[str, str] = {"": ""}

    def __call__(self, listed: str) -> str:
        parent, _, name = listed.strip("/").rpartition("/")
        if parent not in self._parents:
            self._parents[parent] = self._real(parent)
        resolved = self._parents[parent]
        return f"{resolved}/{name}" if resolved else name

    def _real(self, path: str) -> str:
        done: list[str] = []
        pending = path.split("/")[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            target = self._paths.get("/".join([*done, part]))
            if target is None:
                done.append(part)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise Failure(
                    f"/{path}: more than {_MOST_LINKS} symbolic links", "the root has a loop of links"
                )
            if target.startswith("/"):
                done.clear()
            pending += target.split("/")[::-1]
        return "/".join(done)


def _packages(status: bytes) -> Iterator[_Package]:
    for stanza in status.decode("utf-8", "surrogateescape").split("\n\n"):
        fields = _fields(stanza)
        if not fields:
            continue
        missing = {"Package", "Status", "Architecture"} - fields.keys()
        if missing:
            raise Failure(
                f"dpkg database: status: a stanza without {', '.join(sorted(missing))}: {stanza[:60]!r}",
                "the root's dpkg database is damaged; build the root again",
            )
        # The third word is the state (dpkg-query(1)); in these two nothing of the package is unpacked.
        if fields["Status"].split()[-1:] in (["not-installed"], ["config-files"]):
            continue
        # «Source: name (version)» when the version differs; no field at all when the name is the package's.
        source = (fields.get("Source") or fields["Package"]).split()[0]
        yield _Package(
            fields["Package"], fields["Architecture"], source, _conffiles(fields.get("Conffiles", ""))
        )


def _fields(stanza: str) -> dict[str, str]:
    """The fields that matter here: deb.fields reads the whole stanza, which takes ten times as long."""
    found: dict[str, str] = {}
    name = ""
    for line in stanza.split("\n"):
        if line[:1] == " ":
            if name == "Conffiles":
                found[name] += line + "\n"
            continue
        name, _, value = line.partition(":")
        if name in ("Package", "Status", "Architecture", "Source", "Conffiles"):
            found[name] = value.strip()
    return found


def _conffiles(folded: str) -> dict[str, str]:
    """`/path md5` a line; then perhaps `obsolete` or `remove-on-upgrade`. A path may hold blanks."""
    found = {}
    for line in folded.split("\n"):
        words = line.strip()
        for flag in (" remove-on-upgrade", " obsolete"):
            words = words.removesuffix(flag)
        path, _, md5 = words.rpartition(" ")
        if path:
            found[path] = md5
    return found


def _diversions(text: bytes) -> dict[str, tuple[str, str]]:
    """From → (the package whose own file stays there, or `:`; where everybody else's goes)."""
    lines = text.decode("utf-8", "surrogateescape").split("\n")
    if lines[-1] == "":
        lines.pop()
    if len(lines) % 3:
        raise Failure(
            f"dpkg database: diversions: expected three lines a diversion, found {len(lines)} lines",
            "the root's dpkg database is damaged; build the root again",
        )
    return {lines[at]: (lines[at + 2], lines[at + 1]) for at in range(0, len(lines), 3)}
