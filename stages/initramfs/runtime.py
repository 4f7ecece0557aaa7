"""The interpreter that runs init, out of the locked packages: the program, a few modules, and the libraries
they need.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.initramfs import bytecode, elf
from stages.initramfs.archive import Archive
from stages.shared import deb
from stages.shared.job import Failure

# What the interpreter's start and init's imports load beyond its built-in and frozen modules; `os` is
# frozen, but its file is the landmark by which Python finds this folder (Modules/getpath.py).
_MODULES = (
    "ctypes/__init__",
    "ctypes/_endian",
    "encodings/__init__",
    "encodings/aliases",
    "encodings/utf_8",
    "os",
    "struct",
    "types",
)
_EXTENSION = re.compile(r"usr/lib/python3\.\d+/lib-dynload/_ctypes\.[^/]+\.so")
_PROGRAM = re.compile(r"usr/bin/(python3\.\d+)")
_LIBRARY = re.compile(r"usr/lib(64)?/([^/]+/)?[^/]+\.so(\.[^/]*)?")
_RELOCK = "lock the recipe again: its set `initramfs` must hold the interpreter and the libraries it needs"


@dataclass(slots=True)
class _Packages:
    """The packages' files that may matter, by path relative to the root."""

    files: dict[str, bytes] = field(default_factory=dict)
    symlinks: dict[str, str] = field(default_factory=dict)


def add(archive: Archive, packages: Sequence[Path]) -> str:
    """Add the interpreter and all it needs; returns its name (`python3.13`). Raises Failure naming what is
    missing.
    """
    found = _read(packages)
    programs = sorted(path for path in found.files if _PROGRAM.fullmatch(path))
    extensions = sorted(path for path in found.files if _EXTENSION.fullmatch(path))
    if len(programs) != 1 or len(extensions) != 1:
        raise Failure(
            f"expected one Python with _ctypes in the packages, found {programs + extensions or 'none'}",
            _RELOCK,
        )
    python = posixpath.basename(programs[0])
    _add_with_libraries(archive, found, [programs[0], extensions[0]])
    _add_modules(archive, found.files, python)
    return python


def _add_modules(archive: Archive, files: dict[str, bytes], python: str) -> None:
    sources = {}
    for module in _MODULES:
        path = f"usr/lib/{python}/{module}.py"
        if path not in files:
            raise Failure(f"expected /{path} in the packages, found none", _RELOCK)
        sources[path] = files[path]
    for path, content in bytecode.compile_all(sources, python).items():
        archive.file(path, 0o644, content)


def _read(packages: Sequence[Path]) -> _Packages:
    found = _Packages()
    module = re.compile(rf"usr/lib/python3\.\d+/({'|'.join(_MODULES)})\.py")
    wanted = (_PROGRAM, _EXTENSION, _LIBRARY, module)
    for package in packages:
        with deb.data(package) as members:
            for member in members:
                path = posixpath.normpath(member.name)
                if not any(pattern.fullmatch(path) for pattern in wanted):
                    continue
                if member.issym():
                    found.symlinks[path] = member.linkname
                elif member.isreg() and (content := members.extractfile(member)) is not None:
                    found.files[path] = content.read()
    return found


def _add_with_libraries(archive: Archive, found: _Packages, programs: Sequence[str]) -> None:
    """Add `programs`, and by the names in their dynamic sections every library, symbolic links included."""
    by_name = {posixpath.basename(path): path for path in sorted([*found.files, *found.symlinks])}
    pending = list(programs)
    added: set[str] = set()
    tops: set[str] = set()
    while pending:
        path = pending.pop()
        if path in added:
            continue
        added.add(path)
        if path in found.symlinks:
            target = found.symlinks[path]
            archive.symlink(path, target)
            pending.append(_merged(posixpath.normpath(posixpath.join("/", posixpath.dirname(path), target))))
            continue
        if path not in found.files:
            raise Failure(f"expected /{path} in the packages, found none", _RELOCK)
        content = found.files[path]
        archive.file(path, 0o755, content)
        wanted = elf.needs(content, path)
        if wanted.interpreter:
            tops.add(wanted.interpreter.split("/")[1])
            pending.append(_merged(wanted.interpreter))
        for name in wanted.libraries:
            if name not in by_name:
                raise Failure(f"/{path} needs {name}, which no package of the set holds", _RELOCK)
            pending.append(by_name[name])
    # The dynamic loader's path is below /lib or /lib64: links into /usr (file-hierarchy(7), merged /usr).
    for top in sorted(tops):
        archive.symlink(top, f"usr/{top}")


def _merged(path: str) -> str:
    """An absolute path as the packages hold it: relative, and below usr."""
    relative = path.lstrip("/")
    return relative if relative.startswith("usr/") else f"usr/{relative}"
