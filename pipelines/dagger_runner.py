"""Inside every container that the Dagger executor asks for: runs a stage, keeps results, finds them again.

    run STAGE            the stage's program, in the stage environment; outputs as single files in /stage/out
    keep PLAN STAGE KEY  files of /kept into the volume of results, under the stage's key
    find KEY             the record of a result
    fetch KEY OUTPUT     one output of a result, its digest checked
    last PLAN            the newest record's key document of each stage of a plan
    unpack               the folder that /packed.tar holds

Each writes /stage/out/answer.json. Standard library only, under any python3 ≥ 3.11: the bootstrap image's or
a tools tree's.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any, NoReturn

from pipelines.definition import canonical_json
from pipelines.keys import files_digest
from stages.shared.canonical_tar import pack, unpack

STAGE = Path("/stage")
OUT = STAGE / "out"
RESULTS = Path("/results")
KEPT = Path("/kept")
PACKED = Path("/packed.tar")
# Where a stage's folders travel, until they are unpacked into /stage/in.
TRANSFER = Path("/transfer")
POOL = Path("/pool")

# No result under the key; a result that is not what it was, and now removed.
ABSENT, DAMAGED = 3, 4

_CHUNK = 1 << 20
_AGAIN = "run the same command again"
# prctl(2) and capability.h(7): every stage lacks mknod, which an ordinary user's sandbox can't have.
_PR_CAPBSET_DROP, _CAP_MKNOD = 24, 27
_PR_SET_NO_NEW_PRIVS = 38
_ENVIRONMENT = ("PATH", "LC_ALL", "TZ", "SOURCE_DATE_EPOCH")
_NETWORK_ENVIRONMENT = (
    "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip


def run(stage: str) -> None:
    """Run the stage that /order.json describes, and pack what it wrote."""
    order = json.loads(Path("/order.json").read_text())
    for name in order["folders"]:
        (STAGE / "in").mkdir(exist_ok=True)
        unpack(TRANSFER / f"{name}.tar", STAGE / "in" / name)
    for name, sha256 in order["sources"].items():
        if _sha256(STAGE / name) != sha256:
            _fail(f"{name}: changed while the build ran", _AGAIN, "changed")
    began = time.monotonic()
    code = _program(order)
    if code != 0:
        raise SystemExit(code)
    for name in order["folders"]:
        shutil.rmtree(STAGE / "in" / name)
    if unexpected := sorted(set(os.listdir(OUT)) - set(order["outputs"])):
        _wrong_output(order, f"{unexpected[0]}: expected only {', '.join(order['outputs'])}")
    outputs = {name: _packed(OUT / name, kind, order) for name, kind in order["outputs"].items()}
    if order["network"]:
        _fill_pool(outputs)
    _answer({"outputs": outputs, "milliseconds": round((time.monotonic() - began) * 1000)})


def _program(order: dict[str, Any]) -> int:
    """The program's exit code; its output passes, but for what is meant for a progress bar."""
    wanted = (*_ENVIRONMENT, *(_NETWORK_ENVIRONMENT if order["network"] else ()))
    given = {**os.environ, **order["environment"]}
    libc = ctypes.CDLL(None)

    def confine() -> None:
        os.umask(0o022)
        libc.prctl(_PR_CAPBSET_DROP, _CAP_MKNOD, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    with subprocess.Popen(
        ["python3", "-B", "-s", "-m", order["module"], str(STAGE)],
        executable=sys.executable,
        env={name: given[name] for name in wanted if name in given},
        cwd=STAGE / "program",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=confine,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"@error "):
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
            elif not line.startswith(b"@progress "):
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _packed(path: Path, kind: str, order: dict[str, Any]) -> dict[str, Any]:
    """An output as one file in its place: digest (as keys.py has it), size in bytes, sha256 of that file."""
    if kind == "file":
        if not path.is_file() or path.is_symlink():
            _wrong_output(order, f"{path.name}: expected a plain file, found {_kind_of(path)}")
        sha256 = _sha256(path)
        return {"kind": kind, "digest": sha256, "size": path.stat().st_size, "files": [], "sha256": sha256}
    if not path.is_dir() or path.is_symlink():
        _wrong_output(order, f"{path.name}: expected a folder of plain files, found {_kind_of(path)}")
    files: list[tuple[str, str, int]] = []
    for inner in _inside(path):
        relative = inner.relative_to(path).as_posix()
        if inner.is_symlink() or not inner.is_file():
            _wrong_output(order, f"{relative}: expected a plain file, found {_kind_of(inner)}")
        files.append((relative, _sha256(inner), inner.stat().st_size))
    files.sort(key=lambda file: file[0].encode())
    tar = path.with_name(f"{path.name}.tar")
    pack(path, tar, 0)
    shutil.rmtree(path)
    tar.rename(path)
    return {
        "kind": kind,
        "digest": files_digest((name, sha256) for name, sha256, _ in files),
        "size": sum(size for _, _, size in files),
        "files": files,
        "sha256": _sha256(path),
    }


def _inside(folder: Path) -> Iterator[Path]:
    for at, folders, names in os.walk(folder):
        yield from (Path(at, name) for name in names)
        # a link to a folder stands among the folders; it is refused as a file
        yield from (Path(at, name) for name in folders if os.path.islink(os.path.join(at, name)))


def _fill_pool(outputs: dict[str, dict[str, Any]]) -> None:
    """What a network stage brought goes into the pool volume, for the next lock; each reader checks it."""
    for name, output in outputs.items():
        folder = Path("/tmp", f"pool-{name}")
        wanted = [
            (path, sha256)
            for path, sha256, _ in output["files"]
            if path.startswith("pool/") and not _is(POOL / path, sha256)
        ]
        if not wanted:
            continue
        unpack(OUT / name, folder)
        for path, _ in wanted:
            target = POOL / path
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_name(f".{target.name}.{token_hex(4)}")
            shutil.copyfile(folder / path, fresh)
            fresh.replace(target)
        shutil.rmtree(folder)


def keep(plan: str, stage: str, key: str) -> None:
    """Put a result into the volume: a folder made aside and renamed, so that nobody reads half of one."""
    record = json.loads((KEPT / "record.json").read_text())
    fresh = RESULTS / f".{key}.{token_hex(4)}"
    fresh.mkdir(parents=True)
    try:
        for name, output in record["outputs"].items():
            if (found := _copy(KEPT / name, fresh / name)) != output["sha256"]:
                _fail(f"{name}: expected sha256 {output['sha256']}, found {found}", _AGAIN, "changed")
        shutil.copyfile(KEPT / "record.json", fresh / "record.json")
        place = RESULTS / key
        if place.exists():
            place.rename(fresh.with_name(f"{fresh.name}.old"))
            shutil.rmtree(fresh.with_name(f"{fresh.name}.old"))
        fresh.rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    last = RESULTS / "last" / plan / stage
    last.parent.mkdir(parents=True, exist_ok=True)
    newer = last.with_name(f".{stage}.{token_hex(4)}")
    newer.write_text(key)
    newer.replace(last)
    _answer({})


def find(key: str) -> None:
    """Answer with the record under `key`; an entry that can't be the result is removed."""
    _answer(_record(key))


def fetch(key: str, output: str) -> None:
    """Bring one output; wrong bytes remove the entry."""
    expected = _record(key)["outputs"][output]["sha256"]
    found = _copy(RESULTS / key / output, OUT / output)
    if found != expected:
        _damaged(key, f"{output}: expected sha256 {expected}, found {found}")
    _answer({})


def last(plan: str) -> None:
    """Answer with a key document for each stage whose newest result is still there."""
    documents: dict[str, Any] = {}
    folder = RESULTS / "last" / plan
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            record = json.loads((RESULTS / path.read_text() / "record.json").read_text())
            documents[path.name] = record["document"]
        except (OSError, ValueError, LookupError):
            continue  # only a reason is told from it; without one the stage «never ran»
    _answer(documents)


def unpack_folder() -> None:
    """Unpack /packed.tar beside the answer."""
    unpack(PACKED, OUT / "folder")
    _answer({})


def _record(key: str) -> dict[str, Any]:
    place = RESULTS / key
    try:
        record: dict[str, Any] = json.loads((place / "record.json").read_text())
        if hashlib.sha256(canonical_json(record["document"])).hexdigest() != key:
            _damaged(key, "its record is of another key")
        for name in record["outputs"]:
            if not (place / name).is_file():
                _damaged(key, f"{name} is missing")
    except FileNotFoundError:
        if place.exists():
            _damaged(key, "it has no record")
        raise SystemExit(ABSENT) from None
    except (ValueError, LookupError, TypeError) as error:
        _damaged(key, f"its record can't be read: {error}")
    return record


def _damaged(key: str, why: str) -> NoReturn:
    shutil.rmtree(RESULTS / key, ignore_errors=True)
    sys.stderr.write(f"result {key}: {why}\n")
    raise SystemExit(DAMAGED)


def _answer(value: object) -> None:
    (OUT / "answer.json").write_text(json.dumps(value))


def _wrong_output(order: dict[str, Any], what: str) -> NoReturn:
    _fail(f"output {what}", f"correct the program {order['module']}", "output")


def _fail(what: str, hint: str, code: str) -> NoReturn:
    told = {"what": what, "hint": hint, "code": code, "details": []}
    sys.stderr.write(f"@error {json.dumps(told)}\n")
    raise SystemExit(1)


def _kind_of(path: Path) -> str:
    if path.is_symlink():
        return "a symbolic link"
    return "a folder" if path.is_dir() else "something else" if path.exists() else "nothing"


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256(path) == sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _copy(source: Path, target: Path) -> str:
    """Copy and give the sha256 of what was read."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


_COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "keep": keep,
    "find": find,
    "fetch": fetch,
    "last": last,
    "unpack": unpack_folder,
}

if __name__ == "__main__":
    os.umask(0o022)
    _COMMANDS[sys.argv[1]](*sys.argv[2:])
