"""Hang referrers on an image, in a process that is killed at one line of what writes after the other.

Run as a program: FOLDER must hold `image`, a layout. Writes how many lines there are. Each attempt works on
a copy of links, so that a write into a file instead of over it would show in the original.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from supply_chain import files, layout_write
from supply_chain.layout import Layout, open_layout
from supply_chain.oci import DOCUMENT_LIMIT, parse_manifest
from supply_chain.referrer import Referrer, write_referrer
from supply_chain.statement import SBOM, SIGNATURE


def referrers(layout: Layout) -> list[Referrer]:
    """Two bundles, as far as writing them goes."""
    created = datetime(2026, 1, 2, tzinfo=UTC)
    return [
        write_referrer(kind.encode(), layout.image, predicate_type=kind, created=created)
        for kind in (SIGNATURE, SBOM)
    ]


def main(folder: Path) -> None:
    """Kill at line 1, 2, 3 … until there is no such line, and check what each leaves behind."""
    original = folder / "image"
    old = (original / "index.json").read_bytes()
    new: set[bytes] = set()
    for line in range(1, 10_000):
        copy = folder / "copy"
        shutil.copytree(original, copy, copy_function=os.link)
        if (pid := os.fork()) == 0:
            _hang(copy, killed_at=line)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        layout = open_layout(copy)
        layout.check()
        content = (copy / "index.json").read_bytes()
        assert content == old or len(layout.index.manifests) == 3, f"line {line}: {content!r}"
        if content != old:
            new.add(content)
        for entry in layout.index.manifests:
            for blob in parse_manifest(layout.read(entry, limit=DOCUMENT_LIMIT), "manifest").blobs:
                layout.read(blob, limit=1 << 20)
        again = layout_write.hang(layout, referrers(layout))
        assert len(again.index.manifests) == 3
        assert (original / "index.json").read_bytes() == old
        shutil.rmtree(copy)
        if not killed:
            open_layout(original).check()
            assert len(new) == 1, "the same referrers gave more than one index"
            sys.stdout.write(f"{line - 1}\n")
            return


def _hang(copy: Path, *, killed_at: int) -> None:
    left = killed_at

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in (layout_write.__file__, files.__file__):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return count

    layout = open_layout(copy)
    made = referrers(layout)
    sys.settrace(count)
    layout_write.hang(layout, made)
    sys.settrace(None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
