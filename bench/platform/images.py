"""Signed images in a registry on loopback, in a process of their own:
python -m bench.platform.images FOLDER COUNT BYTES

Makes a trust in FOLDER, pushes COUNT images of some more than BYTES, prints where they are, and serves until
its input ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.platform.served import ROOT
from supply_chain.trust import init_embedded, load_trust
from tests.platform_server.images import Images
from tests.supply_chain.registry_server import registry
from tests.supply_chain.verify.forge import Forge


@dataclass(frozen=True)
class Pushed:
    """The registry's `host:port`, references of signed images there by digest, and their trust."""

    host: str
    refs: list[str]
    trust: Path


@contextmanager
def pushed(folder: Path, count: int, size: int) -> Iterator[Pushed]:
    """So many images, of so many bytes, as long as the block lasts."""
    command = [sys.executable, "-m", __name__, str(folder), str(count), str(size)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            raise RuntimeError("the registry did not start")
        try:
            told = json.loads(said)
            yield Pushed(told["host"], told["refs"], folder)
        finally:
            process.stdin.close()


def _serve(folder: Path, count: int, size: int) -> None:
    init_embedded(folder)
    forge = Forge(load_trust(folder))
    with registry() as server:
        images = Images(server, forge)
        made = (
            images.push(f"debian {number}", commit=f"{number + 1:040x}", objects=size)
            for number in range(count)
        )
        refs = [images.ref(each.image.digest) for each in made]
        print(json.dumps({"host": server.host, "refs": refs}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
