"""The `disk-image` command: one verb, one module under `pipelines/commands/`, loaded when its verb is
called.

Exit codes: 0 done, 1 failed, 2 wrong use. Progress goes to standard error; standard output has the
result alone.
"""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

from pipelines.errors import DiskImageError
from pipelines.verbs import building, platform, publishing
from pipelines.verbs.arguments import Parser

EXIT_INTERRUPTED = 130

# httpx loads its own command line (click, rich, pygments) with itself where those are installed, and does
# without it where they are not: that is more than half of the time that it takes to load.
sys.modules["httpx._main"] = None  # type: ignore[assignment]


def parser() -> Parser:
    """The whole command line."""
    top = Parser(prog="disk-image", description="One recipe becomes a bootable OS image, digest for digest.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    building.declare(verbs)
    publishing.declare(verbs)
    platform.declare(verbs)
    return top


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one verb and exit."""
    for stream in (sys.stdout, sys.stderr):
        # What is shown may be the name of a file, which need not be text that this terminal knows.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = _run(sys.argv[1:] if argv is None else argv)
        finally:
            print(end="", flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"error: standard output: {error.strerror}\n  to do: free its space", file=sys.stderr)
        # Keep the interpreter from failing again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    raise SystemExit(code)


def _run(argv: list[str]) -> int:
    """The exit code. What goes wrong in a verb is reported; what is raised, standard output raised."""
    debug, as_json = "--debug" in argv, "--json" in argv
    try:
        args = parser().parse_args(argv)
        debug, as_json = args.debug, args.json
        code: int = _loaded(args.module).run(args)
        return code
    except DiskImageError as error:
        if debug:
            raise
        failed = error
    except KeyboardInterrupt:
        failed = DiskImageError("interrupted", "the same command goes on where this one stopped")
        failed.exit_code = EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        failed = _unforeseen(error)
    if as_json:
        print(json.dumps(failed.to_json()))
    print(f"error: {failed.where}{failed.what}\n  to do: {failed.hint}", file=sys.stderr)
    return failed.exit_code


def _loaded(module: str) -> Any:
    """A verb's module. Hardly anything that is made meanwhile is garbage, and next to nothing later: not to
    look for it takes some tenths of a second off the platform's start and off each full collection.
    """
    gc.disable()
    try:
        return import_module(f"pipelines.commands.{module}")
    finally:
        gc.freeze()
        gc.enable()


def _unforeseen(error: Exception) -> DiskImageError:
    if isinstance(error, OSError):
        hint = "check the path, its permissions and the free space; --debug shows where"
        return DiskImageError(str(error), hint)
    # Its text may quote anything, secrets included.
    return DiskImageError(f"a fault in disk-image: {type(error).__name__}", "report what --debug shows")
