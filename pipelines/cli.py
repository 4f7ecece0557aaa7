"""The `disk-image` command: one verb, one module under `pipelines/commands/`, loaded when its verb is
called.

Exit codes: 0 done, 1 failed, 2 wrong use. Progress goes to standard error; standard output has the
result alone.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import NoReturn

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
    if as_json:
        print(json.dumps(error.to_json()))
    print(f"error: {error.where}{error.what}\n  to do: {error.hint}", file=sys.stderr)
