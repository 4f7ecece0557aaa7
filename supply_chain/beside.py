"""Files that belong to a layout but are no part of it: they stand beside its folder, under its name.

`build` writes LAYOUT.sbom.json and LAYOUT.build.json, which `sign` attests. Loads nothing but the standard
library, because the unchanged build comes here too.
"""

from __future__ import annotations

from pathlib import Path

from supply_chain.errors import LayoutError
from supply_chain.files import read_regular, replace_file

REBUILD = "remove it, then write it anew: disk-image build RECIPE --output LAYOUT"


def beside(layout: Path, suffix: str) -> Path:
    """The path `LAYOUT.<suffix>`."""
    folder = layout if layout.name not in ("", "..") else layout.resolve()
    return folder.with_name(f"{folder.name}.{suffix}")


def sbom_path(layout: Path) -> Path:
    """`LAYOUT.sbom.json`: the SPDX document."""
    return beside(layout, "sbom.json")


def build_record_path(layout: Path) -> Path:
    """`LAYOUT.build.json`: the provenance but for the builder's id."""
    return beside(layout, "build.json")


def read_beside(path: Path, limit: int) -> bytes:
    """The file's bytes, at most `limit`; LayoutError when it can't be read or has more."""
    try:
        content = read_regular(path, limit)
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror or error}", REBUILD) from None
    if len(content) > limit:
        raise LayoutError(f"{path}: expected at most {limit} bytes, found more", REBUILD)
    return content


def write_beside(path: Path, content: bytes) -> None:
    """Write the file (files.replace_file); one that holds the same is left alone."""
    try:
        if read_regular(path, len(content)) == content:
            return
    except OSError:
        pass
    replace_file(path, content)
