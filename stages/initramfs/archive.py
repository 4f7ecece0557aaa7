"""What goes into the archive, collected in any order and written in one."""

from __future__ import annotations

import io
import os

from stages.initramfs.newc import Writer
from stages.shared.job import Failure


class Archive:
    """Files, symbolic links and directories by relative path; parents come by themselves, all owned by
    root.
    """

    def __init__(self) -> None:
        self._files: dict[str, tuple[int, bytes]] = {}
        self._symlinks: dict[str, str] = {}
        self._directories: set[str] = set()

    def file(self, path: str, mode: int, content: bytes) -> None:
        """Add a file; Failure when the path is taken."""
        self._claim(path)
        self._files[path] = (mode, content)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link; Failure when the path is taken."""
        self._claim(path)
        self._symlinks[path] = target

    def directory(self, path: str) -> None:
        """Add a directory of mode 0755 and its parents."""
        while path:
            if path in self._files or path in self._symlinks:
                raise _taken(path)
            self._directories.add(path)
            path = path.rpartition("/")[0]

    def to_bytes(self, mtime: int) -> bytes:
        """The newc archive; `mtime` is every entry's time."""
        links = dict.fromkeys(self._directories, 2)
        for path in self._directories:
            parent = path.rpartition("/")[0]
            if parent:
                links[parent] += 1
        stream = io.BytesIO()
        writer = Writer(stream, mtime)
        for path in sorted([*self._files, *self._symlinks, *self._directories], key=os.fsencode):
            if path in self._directories:
                writer.directory(path, 0o755, links[path])
            elif path in self._symlinks:
                writer.symlink(path, self._symlinks[path])
            else:
                writer.file(path, *self._files[path])
        writer.close()
        return stream.getvalue()

    def _claim(self, path: str) -> None:
        if path in self._files or path in self._symlinks or path in self._directories:
            raise _taken(path)
        self.directory(path.rpartition("/")[0])


def _taken(path: str) -> Failure:
    return Failure(
        f"/{path}: two things want this path in the initramfs",
        "choose another path in the recipe's initramfs.files",
    )
