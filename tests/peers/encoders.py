"""Two programs that make composefs images, of no common code: mkcomposefs (C) and cfsctl (Rust)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class Refused(Exception):
    """An encoder ended with a message instead of an image."""


@dataclass(frozen=True)
class Encoder:
    """A program with mkcomposefs's command line; `argv` is how its command begins."""

    argv: Sequence[str]

    def image(self, source: Path | bytes, scratch: Path, *options: str) -> tuple[bytes, str]:
        """The image of a dump (bytes) or a folder (its path), and the digest that the program prints."""
        if isinstance(source, bytes):
            dump = scratch / "dump"
            dump.write_bytes(source)
            source, options = dump, ("--from-file", *options)
        output = scratch / "image"
        output.unlink(missing_ok=True)
        digest = said(*self.argv, *options, "--print-digest", source, output)
        return output.read_bytes(), digest


def said(*argv: str | Path) -> str:
    """A command's standard output; raises Refused with its standard error."""
    done = subprocess.run(
        argv, capture_output=True, env={**os.environ, "RUST_BACKTRACE": "0"}, timeout=600, check=False
    )
    if done.returncode != 0:
        raise Refused(f"{argv}: exit code {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode().strip()


def differing(a: bytes, b: bytes) -> list[int]:
    """The offsets at which two images differ; where one is longer, its first offset beyond the other too."""
    found = [at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    return found if len(a) == len(b) else [*found, min(len(a), len(b))]
