"""The `disk-image` command: one verb, one module under `pipelines/commands/`, loaded when its verb is
called.

Exit codes: 0 done, 1 failed, 2 wrong use. Progress goes to standard error; standard output has the
result alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from pipelines.errors import DiskImageError, StageError

EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Wrong use is one line of what is wrong and one of what to do, like every other failure."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\n  to do: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _verb(
    verbs: argparse._SubParsersAction[_Parser], name: str, does: str, example: str, module: str | None = None
) -> _Parser:
    parser = verbs.add_parser(
        name,
        help=does,
        description=does[0].upper() + does[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(module=module or name)
    common = parser.add_argument_group("common")
    common.add_argument("--json", action="store_true", help="print one JSON object to standard output")
    common.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def _recipe(parser: _Parser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="the recipe's folder")


def _store(parser: _Parser) -> None:
    parser.add_argument(
        "--store",
        type=Path,
        help="results and downloads (else DISK_IMAGE_STORE, else the user's cache folder)",
    )


def _locks(parser: _Parser) -> None:
    parser.add_argument(
        "--lock", type=Path, metavar="FILE", help="the recipe's lock (else lock.json beside it)"
    )
    _tools_lock(parser)


def _tools_lock(parser: _Parser) -> None:
    parser.add_argument(
        "--tools-lock", type=Path, metavar="FILE", help="the tools' lock (else stages/tools.lock)"
    )


def _archive(parser: _Parser) -> None:
    parser.add_argument(
        "--archive",
        action="append",
        metavar="URL|DIR",
        help="a Debian archive's root; repeatable (else DISK_IMAGE_ARCHIVE, else this machine's apt's)",
    )


def _building(parser: _Parser) -> None:
    _store(parser)
    _archive(parser)
    parser.add_argument(
        "--pool",
        action="append",
        type=Path,
        metavar="DIR",
        help="a folder of locked files to look in first; repeatable",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="stages side by side (else the number of processors)"
    )


def parser() -> _Parser:
    """The whole command line."""
    top = _Parser(
        prog="disk-image", description="One recipe becomes a bootable OS image, digest for digest."
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    lock = _verb(
        verbs,
        "lock",
        "resolve a recipe's packages and write its lock",
        "disk-image lock recipes/debian-minimal",
    )
    lock.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE", help="the recipe's folder")
    lock.add_argument(
        "--tools", action="store_true", help="lock the tools of all recipes (stages/tools.lock) instead"
    )
    lock.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a new lock would differ"
    )
    lock.add_argument(
        "--update", action="append", metavar="NAME", help="let only this package move; repeatable"
    )
    lock.add_argument(
        "--accept-expired",
        action="append",
        metavar="SUITE",
        help="take an extra suite of the tools from an index past its Valid-Until; its signature must hold",
    )
    _archive(lock)

    build = _verb(
        verbs,
        "build",
        "build a recipe's image as an OCI layout",
        "disk-image build recipes/debian-minimal --output out/debian-minimal",
    )
    _recipe(build)
    build.add_argument("--output", type=Path, metavar="LAYOUT", help="where the OCI layout goes")
    build.add_argument(
        "--executor",
        choices=("local", "dagger"),
        default="local",
        help="what runs the stages: this machine, or a Dagger engine",
    )
    build.add_argument("--base", metavar="IMAGE", help="dagger: another bootstrap image (same digest)")
    build.add_argument(
        "--relock",
        action="store_true",
        help="lock beside the output when the committed lock can't be served any more",
    )
    build.add_argument("--target", metavar="STAGE", help="stop after this stage (else image)")
    build.add_argument(
        "--only", metavar="STAGE", help="run this stage anew, and what it needs; show its whole log"
    )
    _locks(build)
    _building(build)

    explain = _verb(
        verbs,
        "explain",
        "say for each stage why it would run, naming the input that changed",
        "disk-image explain recipes/debian-minimal",
    )
    _recipe(explain)
    _locks(explain)
    _store(explain)

    boot = _verb(
        verbs,
        "boot",
        "boot an image in QEMU and check that its root is verified",
        "disk-image boot out/debian-minimal",
    )
    boot.add_argument("layout", type=Path, metavar="LAYOUT", help="an OCI layout that build wrote")
    boot.add_argument("--console", type=Path, metavar="FILE", help="keep the guest's serial console here")
    _tools_lock(boot)
    _building(boot)

    push = _verb(
        verbs,
        "push",
        "push an image to a registry; only what is missing travels",
        "disk-image push out/debian-minimal registry.example/os/debian:13",
    )
    push.add_argument("layout", type=Path, metavar="LAYOUT", help="an OCI layout that build wrote")
    push.add_argument("ref", metavar="REF", help="host/path:tag, or host/path@sha256:…")
    push.add_argument(
        "--dry-run", action="store_true", help="send nothing; say how many bytes a push would send"
    )
    push.add_argument("--plain-http", action="store_true", help="for registries on this machine only")
    push.add_argument(
        "--ca-file", type=Path, metavar="PEM", help="trust this authority besides the system's"
    )
    push.add_argument(
        "--mount-from",
        action="append",
        metavar="PATH",
        help="a repository that may have blobs already; repeatable",
    )

    doctor = _verb(verbs, "doctor", "check what this machine has and lacks", "disk-image doctor")
    _store(doctor)

    cache = _verb(verbs, "cache", "collect or check the store", "disk-image cache gc --max-age 14")
    cache.add_argument(
        "action", choices=("gc", "check"), help="gc: remove what was not used; check: read every entry"
    )
    cache.add_argument(
        "--max-age", type=float, metavar="DAYS", help="gc: remove results not used for so long (30)"
    )
    cache.add_argument(
        "--max-size", type=float, metavar="GIB", help="gc: then the least recently used until this fits"
    )
    cache.add_argument(
        "--repair", action="store_true", help="check: remove what is wrong, so that it is built anew"
    )
    _store(cache)
    return top


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one verb and exit."""
    args = parser().parse_args(argv)
    try:
        run = import_module(f"pipelines.commands.{args.module}").run
        code: int = run(args)
    except DiskImageError as error:
        if args.debug:
            raise
        _report(error, as_json=args.json)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away; keep the interpreter from failing again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if args.debug:
            raise
        _report(
            DiskImageError(
                str(error), "check the path, its permissions and the free space; --debug shows where"
            ),
            as_json=args.json,
        )
        code = 1
    raise SystemExit(code)


def _report(error: DiskImageError, *, as_json: bool) -> None:
    stage = error.stage if isinstance(error, StageError) else ""
    if as_json:
        print(json.dumps({"error": error.what, "hint": error.hint, "stage": stage or None}))
    where = f"stage {stage}: " if stage else ""
    print(f"error: {where}{error.what}\n  to do: {error.hint}", file=sys.stderr)
