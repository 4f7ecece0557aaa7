"""Arguments that verbs share, and how a verb is declared."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn, TypeAlias

from pipelines.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Wrong use is one line of what is wrong and one of what to do, like every other failure."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def verb(verbs: Verbs, name: str, does: str, example: str, module: str | None = None) -> Parser:
    """A verb with its help, its example and what every verb takes; it runs `pipelines.commands.<name>`."""
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


def recipe(parser: Parser) -> None:
    """RECIPE."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="the recipe's folder")


def store(parser: Parser) -> None:
    """--store."""
    parser.add_argument(
        "--store",
        type=Path,
        help="results and downloads (else DISK_IMAGE_STORE, else the user's cache folder)",
    )


def locks(parser: Parser) -> None:
    """--lock and --tools-lock."""
    parser.add_argument(
        "--lock", type=Path, metavar="FILE", help="the recipe's lock (else lock.json beside it)"
    )
    tools_lock(parser)


def tools_lock(parser: Parser) -> None:
    """--tools-lock."""
    parser.add_argument(
        "--tools-lock", type=Path, metavar="FILE", help="the tools' lock (else stages/tools.lock)"
    )


def archive(parser: Parser) -> None:
    """--archive."""
    parser.add_argument(
        "--archive",
        action="append",
        metavar="URL|DIR",
        help="a Debian archive's root; repeatable (else DISK_IMAGE_ARCHIVE, else this machine's apt's)",
    )


def building(parser: Parser) -> None:
    """What runs stages takes: store, archives, pools, jobs."""
    store(parser)
    archive(parser)
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


def registry(parser: argparse._ActionsContainer) -> None:
    """--plain-http and --ca-file."""
    parser.add_argument("--plain-http", action="store_true", help="for registries on this machine only")
    parser.add_argument(
        "--ca-file", type=Path, metavar="PEM", help="trust this authority besides the system's"
    )
