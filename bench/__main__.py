"""Run the benchmarks named on the command line, or all of them: python -m bench [NAME …] [LAYOUT]"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from bench import composefs, dagger, mkosi, oras, platform

BENCHMARKS = ("mkosi", "composefs", "dagger", "oras", "platform")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(BENCHMARKS)}; then the layout of the image that oras is to push",
    )
    parser.add_argument("--runs", type=int, default=7, help="pairs of samples (default 7)")
    args = parser.parse_args()
    names: list[str] = args.names
    layout = Path(names.pop()) if names and names[-1] not in BENCHMARKS else None
    if unknown := sorted({*names} - {*BENCHMARKS}):
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    run: dict[str, Callable[[int], None]] = {
        "mkosi": mkosi.main,
        "composefs": composefs.main,
        "dagger": dagger.main,
        "oras": lambda runs: oras.main(runs, layout),
        "platform": platform.main,
    }
    for name in names or BENCHMARKS:
        run[name](args.runs)


main()
