"""Files that belong to a layout but are no part of it: they stand beside its folder, under its name.

`build` writes LAYOUT.sbom.json and LAYOUT.build.json, which `sign` attests. Loads nothing but the standard
library, because the unchanged build comes here too.
"""

from __future__ import annotations

from pathlib import Path
from secrets import token_hex

from supply_chain.errors import LayoutError

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
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror or error}", REBUILD) from None
    if len(content) > limit:
        raise LayoutError(f"{path}: expected at most {limit} bytes, found more", REBUILD)
    return content


def write_beside(path: Path, content: bytes) -> None:
    """Write the file by rename(2); one that holds the same is left alone."""
    try:
        if path.read_bytes() == content:
            return
    except OSError:
        pass
    fresh = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        fresh.write_bytes(content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
