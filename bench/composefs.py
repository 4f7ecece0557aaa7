"""The composefs stage against `mkcomposefs --digest-store`, on one seeded tree: 50,000 files, 1.5 GiB.

`TOOLS` names a tools tree with composefs (a folder, or the tar that the stage tools-image writes); both
programs run inside it, which takes root. Without it both run on the host, which then needs mkcomposefs.

They don't do the same, and the table has a line for each reading of it:

- mkcomposefs walks a folder, measures every file, copies those above 64 bytes into a store (cold: an empty
  one; warm: they are there, and it only measures) and writes the metadata image.
- The stage reads a canonical tar, checks its form, measures every file, finds its source package, and writes
  the dump, the metadata image and the list of objects. Objects stay ranges of the tar: nothing is copied.
- `objects copied too` is the stage, and then a store as mkcomposefs's written from those ranges.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from bench.measure import Command, in_turn, report
from stages.shared import canonical_tar
from stages.shared.canonical_tar import Entry, Kind

ROOT = Path(__file__).parents[1]
FILES, BYTES = 50_000, 1536 << 20
SEED, EPOCH = 20_260_101, 1_767_225_600
IN_FOLDER, IN_PACKAGE = 40, 200


@dataclass(frozen=True)
class Where:
    """Where both programs run: below `root` (None: the host), in the folder `work`."""

    root: Path | None
    work: Path

    def inside(self, *parts: str) -> str:
        """A path below `work`, as the programs see it."""
        path = self.work.joinpath(*parts)
        return os.fspath(path if self.root is None else "/" / path.relative_to(self.root))

    def argv(self, *argv: str) -> list[str]:
        """The command that runs `argv` there, beside the stage's program."""
        command = ["env", "-C", self.inside("program"), *argv]
        if self.root is None:
            return command
        # mkcomposefs copies through /proc/self/fd; the mount goes with the command.
        script = 'mount -t proc proc "$1/proc" && exec chroot "$@"'
        return ["unshare", "--mount", "sh", "-ec", script, "sh", os.fspath(self.root), *command]


def generate(tar: Path, files: int, total: int) -> None:
    """Write the seeded tree: sizes spread as in a root, one file in ten of at most 64 bytes, one in fifty
    with the content of another, symbolic and hard links, and the dpkg database of packages that own it all.
    """
    chance = random.Random(SEED)
    weights = [0.0 if chance.random() < 0.1 else chance.lognormvariate(0, 1.8) for _ in range(files)]
    unit = total / sum(weights)
    sizes = [65 + int(weight * unit) if weight else chance.randrange(65) for weight in weights]
    entries: dict[str, Entry] = {}
    known: dict[str, bytes] = {}

    def add(entry: Entry, content: bytes | None = None) -> None:
        parent = entry.path.rpartition("/")[0]
        if parent and parent not in entries:
            add(Entry(parent, Kind.DIRECTORY, 0o755, 0, 0, entry.mtime))
        entries[entry.path] = entry
        if content is not None:
            known[entry.path] = content

    for number, size in enumerate(sizes):
        folder = f"usr/lib/d{number // IN_FOLDER:04d}"
        file = Entry(f"{folder}/f{number:05d}", Kind.FILE, 0o644, 0, 0, EPOCH - number, size)
        if number % 500 == 499:  # the first path in sort order holds the content
            add(replace(file, path=f"{folder}/a{number:05d}"))
            file = replace(file, kind=Kind.HARDLINK, size=0, target=f"{folder}/a{number:05d}")
        add(file)
        if number % 50 == 49:
            add(Entry(f"{folder}/l{number:05d}", Kind.SYMLINK, 0o777, 0, 0, EPOCH, target=f"f{number:05d}"))
    paths = list(entries)
    status = []
    for number, at in enumerate(range(0, len(paths), IN_PACKAGE)):
        name = f"package{number:03d}"
        status.append(f"Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n")
        listed = "".join(f"/{path}\n" for path in ("usr", "usr/lib", *paths[at : at + IN_PACKAGE])).encode()
        add(Entry(f"var/lib/dpkg/info/{name}.list", Kind.FILE, 0o644, 0, 0, EPOCH, len(listed)), listed)
    text = "\n".join(status).encode()
    add(Entry("var/lib/dpkg/status", Kind.FILE, 0o644, 0, 0, EPOCH, len(text)), text)

    last = b""
    with tar.open("wb", 1 << 20) as stream, canonical_tar.Writer(stream, EPOCH) as writer:
        writer.add(Entry(".", Kind.DIRECTORY, 0o755, 0, 0, EPOCH))
        for path in sorted(entries, key=os.fsencode):
            entry = entries[path]
            content = known.get(path)
            if content is None and entry.kind is Kind.FILE:
                again = chance.random() < 0.02 and len(last) >= entry.size
                content = last = last[: entry.size] if again else chance.randbytes(entry.size)
            writer.add(entry, content)


def _make(tar: Path, folder: Path, files: int, total: int) -> None:
    generate(tar, files, total)
    canonical_tar.unpack(tar, folder)


def copy_objects(tree: Path, objects: Path, store: Path) -> None:
    """Write each object of the list into a store as mkcomposefs lays it out: `xx/rest`."""
    source = os.open(tree, os.O_RDONLY)
    for number in range(256):
        (store / f"{number:02x}").mkdir(parents=True, exist_ok=True)

    def copy(line: str) -> None:
        digest, offset, size, _ = line.split()
        at, end = int(offset), int(offset) + int(size)
        with (store / digest[:2] / digest[2:]).open("xb", buffering=0) as target:
            while at < end:
                at += os.copy_file_range(source, target.fileno(), end - at, at)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, objects.open() as lines:
        for _ in pool.map(copy, lines, chunksize=64):
            pass


def main(runs: int, tools: str | None = None, files: int = FILES, total: int = BYTES) -> None:
    """One table."""
    tools = tools or os.environ.get("TOOLS")
    if tools is None and shutil.which("mkcomposefs") is None:
        print("composefs: not measured: set TOOLS to a tools tree with composefs, or install mkcomposefs")
        return
    if tools is not None and os.geteuid() != 0:
        print("composefs: not measured: TOOLS needs root, to change into the tree")
        return
    scratch = "/dev/shm" if os.path.ismount("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="bench-composefs-", dir=scratch) as name:
        root = _root(Path(tools), Path(name)) if tools is not None else None
        if root is not None and not (root / "usr/bin/mkcomposefs").exists():
            print(f"composefs: not measured: {tools} holds no usr/bin/mkcomposefs")
            return
        # Inside the root that the programs change into; a folder that was given gets it back clean.
        with tempfile.TemporaryDirectory(prefix="bench-", dir=root or name) as work:
            _measure(Where(root, Path(work)), runs, files, total)


def _root(tools: Path, scratch: Path) -> Path:
    if tools.is_dir():
        return tools.resolve()
    canonical_tar.unpack(tools, scratch / "root")
    return scratch / "root"


def _measure(where: Where, runs: int, files: int, total: int) -> None:
    work = where.work
    work.chmod(0o755)
    for package in ("stages", "bench"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, work / "program" / package, ignore=skip)
    job = work / "job"
    (job / "in").mkdir(parents=True)
    (job / "job.json").write_text(
        json.dumps({"name": "composefs", "source_date_epoch": EPOCH, "params": {}})
    )
    # In a process of its own: what this one holds would count as its children's peak (getrusage(2) after
    # exec).
    maker = multiprocessing.get_context("fork").Process(
        target=_make, args=(job / "in" / "tree", work / "folder", files, total)
    )
    maker.start()
    maker.join()
    if maker.exitcode != 0:
        raise SystemExit(f"making the tree: exit code {maker.exitcode}")

    def fresh(index: int) -> None:
        for path in (job / "out", work / "store", work / "objects"):
            shutil.rmtree(path, ignore_errors=True)
        for path in (job / "out", work / "store"):  # mkcomposefs makes no store
            path.mkdir()

    stage = ["python3", "-m", "stages.composefs", where.inside("job")]
    copied = [
        where.inside(*path) for path in (("job", "in", "tree"), ("job", "out", "objects"), ("objects",))
    ]
    both = f"{' '.join(stage)} && python3 -m bench.composefs --copy {' '.join(copied)}"

    def mkcomposefs(store: str, image: str) -> list[str]:
        folders = [where.inside(name) for name in ("folder", image)]
        return where.argv("mkcomposefs", f"--digest-store={where.inside(store)}", *folders)

    commands = (
        Command("the stage", lambda _: where.argv(*stage), fresh),
        Command("the stage, objects copied too", lambda _: where.argv("sh", "-c", both), fresh),
        Command("mkcomposefs, cold store", lambda _: mkcomposefs("store", "theirs.cold"), fresh),
        Command("mkcomposefs, warm store", lambda _: mkcomposefs("warm", "theirs")),
    )
    (work / "warm").mkdir()
    subprocess.run(mkcomposefs("warm", "theirs"), check=True)
    samples = in_turn(commands, runs)
    goal = "the stage at most 1.5 times mkcomposefs with a store; no process above 2 GiB"
    title = f"composefs: {files} files, {total >> 20} MiB"
    ours, too, cold, warm = (command.name for command in commands)
    report(title, samples, ours, cold, goal)
    for a, b in ((ours, warm), (too, cold)):
        pairs = zip(samples[a], samples[b], strict=True)
        ratios = sorted(mine.wall / other.wall for mine, other in pairs)
        spread = f"median {statistics.median(ratios):.2f} (min {ratios[0]:.2f}, max {ratios[-1]:.2f})"
        print(f"  ratio {a} / {b}: {spread}")
    fresh(0)
    subprocess.run(where.argv(*stage), check=True, stdout=subprocess.DEVNULL)
    _compare(where)


def _compare(where: Where) -> None:
    """The digests: equal from the dump; from the folder only where hard links don't matter."""
    out = where.work / "job" / "out"

    def printed(*argv: str) -> str:
        found = subprocess.run(
            where.argv("mkcomposefs", *argv, "--print-digest-only"),
            check=True,
            capture_output=True,
            text=True,
        )
        return found.stdout.strip()

    ours = (out / "digest").read_text().strip()
    dump = printed("--from-file", where.inside("job", "out", "dump"))
    folder = printed(where.inside("folder"))
    print(f"  digest of the stage                  {ours}")
    print(f"  mkcomposefs --from-file, our dump    {'equal' if dump == ours else dump}")
    print(f"  mkcomposefs, the folder              {'equal' if folder == ours else folder}")
    if folder != ours:
        print("    (expected: reading a folder, mkcomposefs makes each hard link a file of its own)")
    if dump != ours:
        raise SystemExit("the digests differ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.composefs", description=__doc__)
    parser.add_argument("--tools", help="tools tree: a folder or a canonical tar (default: $TOOLS)")
    parser.add_argument("--runs", type=int, default=7, help="samples of each command (default 7)")
    parser.add_argument("--files", type=int, default=FILES, help=f"files in the tree (default {FILES})")
    parser.add_argument(
        "--mib", type=int, default=BYTES >> 20, help=f"their content (default {BYTES >> 20})"
    )
    parser.add_argument(
        "--copy", nargs=3, type=Path, metavar=("TREE", "OBJECTS", "STORE"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.copy is not None:
        copy_objects(*args.copy)
        sys.exit(0)
    main(args.runs, args.tools, args.files, args.mib << 20)
