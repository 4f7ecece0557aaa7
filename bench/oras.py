"""Our push against `oras push` of the same files, to distribution 3 on loopback: never-seen bytes, nothing
changed, and one pack changed.

The files have the types and sizes of a layout's, and content of their own for each sample and each command:
a registry takes a blob faster that it has in any repository. What differs, and is part of the figures: oras
hashes the files before it asks for them, ours reads the digests from the layout; ours starts Python.

Times are of whole commands. Bytes are what a client sends, headers included: a relay counts them, in runs of
their own.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.counting_relay import counting_relay
from bench.measure import Command, in_turn, report, run_once
from stages.image.layout import Layout as Writer
from supply_chain.image import ARTIFACT, METADATA, TITLE
from supply_chain.layout import open_layout
from supply_chain.oci import Descriptor, Manifest
from tests.peers.docker_registry import docker_registry
from tests.peers.programs import go_program

ROOT = Path(__file__).parents[1]
WHO = ("disk-image push", "oras push")
_CONFIG = "config.json"


@dataclass(frozen=True)
class Image:
    """The same content twice below `folder`: as a layout, and as files named by their titles."""

    folder: Path
    manifest: Manifest

    def ours(self, ref: str) -> list[str]:
        """The command that pushes the layout."""
        push = [sys.executable, "-m", "pipelines", "push", os.fspath(self.folder / "layout"), ref]
        return [*push, "--plain-http", "--json"]

    def oras(self, program: str, ref: str) -> list[str]:
        """The command that pushes the files, run in their folder."""
        files = [f"{_title(layer)}:{layer.media_type}" for layer in self.manifest.layers]
        config = f"--config={_CONFIG}:{self.manifest.config.media_type}"
        words = ["env", "-C", os.fspath(self.folder / "files"), program, "push", "--plain-http", "--no-tty"]
        return [*words, f"--artifact-type={ARTIFACT}", config, ref, *files]


def _title(layer: Descriptor) -> str:
    return (layer.annotations or {})[TITLE]


def _named(manifest: Manifest) -> dict[str, Descriptor]:
    return {_CONFIG: manifest.config, **{_title(layer): layer for layer in manifest.layers}}


def _changing(manifest: Manifest) -> tuple[str, ...]:
    """What one changed package changes: the pack of median size, the metadata, the configuration."""
    packs = {name: blob.size for name, blob in _named(manifest).items() if name.endswith(".pack")}
    return (sorted(packs, key=packs.__getitem__)[len(packs) // 2], METADATA, _CONFIG)


def _fill(folder: Path, like: Manifest, before: Image | None = None) -> Image:
    """An image of the sizes of `like` with random content; with `before`, the same but for what changes."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    writer = Writer(folder / "layout")

    written = []
    for name, blob in _named(like).items():
        path = folder / "files" / name
        if before is not None and name not in _changing(like):
            shutil.copyfile(before.folder / "files" / name, path)
        else:
            with path.open("wb") as file:
                for start in range(0, blob.size, 1 << 20):
                    file.write(os.urandom(min(1 << 20, blob.size - start)))
        written.append(writer.add_file(blob.media_type, path, blob.annotations))
    writer.finish(ARTIFACT, written[0], written[1:])
    return Image(folder, like)


def main(runs: int, layout: Path | None = None) -> None:
    """Three tables of times, one of bytes."""
    if layout is None:
        print("oras: not measured: name an image's layout: python -m bench oras LAYOUT")
        return
    try:
        oras, distribution = go_program("oras"), go_program("distribution")
    except pytest.skip.Exception as missing:
        print(f"oras: not measured: {missing}")
        return
    manifest = open_layout(layout).manifest
    scratch_root = "/dev/shm" if os.path.ismount("/dev/shm") else None
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-oras-", dir=scratch_root))
        registry = Path(name, "registry")
        registry.mkdir()
        host = stack.enter_context(docker_registry(registry, distribution))
        bench = _Bench(Path(name), manifest, oras, host)
        total = sum(blob.size for blob in manifest.blobs)
        print(f"\n{len(manifest.blobs)} blobs, {total / 1e6:.1f} MB, to distribution 3")
        for title, fill in bench.cases.items():
            pair = [bench.command(who, fill) for who in WHO]
            report(title, in_turn(pair, runs), pair[0].name, pair[1].name, "none; said for honesty")
        bench.bytes_sent()


class _Bench:
    """The commands, each with an image and a repository of its own."""

    def __init__(self, scratch: Path, like: Manifest, oras: str, host: str) -> None:
        self._scratch = scratch
        self._like = like
        self._oras = oras
        self._host = host
        self._images: dict[str, Image] = {}
        self.cases: dict[str, Callable[[str], None]] = {
            "never-seen bytes": self._cold,
            "nothing changed": self._same,
            "one pack changed": self._changed,
        }

    def command(self, who: str, prepare: Callable[[str], None], host: str | None = None) -> Command:
        """The push of `who`, after `prepare` made the image that it pushes."""
        ref = f"{host or self._host}/bench/{who.partition(' ')[0]}:latest"

        def argv(_: int) -> Sequence[str]:
            image = self._images[who]
            return image.ours(ref) if who == WHO[0] else image.oras(self._oras, ref)

        return Command(who, argv, lambda _: prepare(who), cwd=ROOT)

    def bytes_sent(self) -> None:
        """One run of each, through a relay that counts; beside it the sizes of what is new."""
        sizes = {name: blob.size for name, blob in _named(self._like).items()}
        new = {
            "never-seen bytes": sum(sizes.values()),
            "nothing changed": 0,
            "one pack changed": sum(sizes[name] for name in _changing(self._like)),
        }
        print(f"\nbytes sent\n  {'':<34}{'new blobs':>15}{'disk-image push':>18}{'oras push':>14}")
        for title, prepare in self.cases.items():
            sent = []
            for who in WHO:
                with counting_relay(self._host) as relay:
                    run_once(self.command(who, prepare, relay.host), 0)
                sent.append(relay.sent)
            print(f"  {title:<34}{new[title]:>15,}{sent[0]:>18,}{sent[1]:>14,}")

    def _cold(self, who: str) -> None:
        self._images[who] = _fill(self._folder(who), self._like)

    def _same(self, who: str) -> None:
        assert who in self._images

    def _changed(self, who: str) -> None:
        self._images[who] = _fill(self._folder(who), self._like, self._images[who])

    def _folder(self, who: str) -> Path:
        """Another folder than that of the image before."""
        folders = [self._scratch / f"{who.partition(' ')[0]}-{number}" for number in (0, 1)]
        before = self._images.get(who)
        return folders[0] if before is None or before.folder != folders[0] else folders[1]
