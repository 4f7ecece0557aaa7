"""Run the benchmarks named on the command line, or all of them: python -m bench [NAME …] [LAYOUT]"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from bench import composefs, dagger, mkosi, oras
from bench.platform import parts


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(_benchmarks(None))}; then the layout of the image that oras is to push",
    )
    parser.add_argument("--runs", type=int, default=7, help="pairs of samples (default 7)")
    args = parser.parse_args()
    names: list[str] = args.names
    layout = Path(names.pop()) if names and names[-1] not in _benchmarks(None) else None
    run = _benchmarks(layout)
    if unknown := sorted({*names} - {*run}):
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    for name in names or (each for each in run if "." not in each):
        run[name](args.runs)


def _benchmarks(layout: Path | None) -> Mapping[str, Callable[[int], None]]:
    """By name; a part of one has a dot in its name."""
    return {
        "mkosi": mkosi.main,
        "composefs": composefs.main,
        "dagger": dagger.main,
        "oras": partial(oras.main, layout=layout),
        "platform": partial(parts.main, parts=parts.USUAL),
        **{f"platform.{part}": partial(parts.main, parts=[part]) for part in parts.PARTS},
    }


main()
