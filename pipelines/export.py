"""`--output`: an image's OCI layout as links to the store's blobs, never a second copy of the bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from secrets import token_hex

from pipelines.errors import UsageError
from pipelines.records import Stored
from pipelines.store import Store


def export_layout(store: Store, layout: Stored, output: Path | None) -> str:
    """Put the layout at `output` (None: nowhere) and return the manifest's sha256.

    A layout that is there already and holds the same image is left alone, signatures beside it included;
    another image is replaced as a whole by rename(2). A folder that is no OCI layout is refused.
    """
    index = next(file for file in layout.files if file.path == "index.json")
    manifest = _first_manifest(store.blob(index.sha256))
    if output is None or _holds(output, manifest, layout):
        return manifest
    if (
        output.exists()
        and not (output / "oci-layout").is_file()
        and (not output.is_dir() or any(output.iterdir()))
    ):
        raise UsageError(
            f"{output}: expected an OCI layout or nothing, found something else", "name another --output"
        )
    fresh = output.absolute().with_name(f".{output.name}.{token_hex(4)}")
    try:
        store.link(layout, fresh)
        if output.exists():
            old = fresh.with_name(f"{fresh.name}.old")
            output.rename(old)
            fresh.rename(output)
            shutil.rmtree(old)
        else:
            fresh.rename(output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return manifest


def _holds(output: Path, manifest: str, layout: Stored) -> bool:
    try:
        if _first_manifest(output / "index.json") != manifest:
            return False
        return all(
            os.stat(output / file.path).st_size == file.size
            for file in layout.files
            if file.path != "index.json"
        )
    except (OSError, ValueError, LookupError):
        return False


def _first_manifest(index: Path) -> str:
    digest: str = json.loads(index.read_bytes())["manifests"][0]["digest"]
    return digest.removeprefix("sha256:")
