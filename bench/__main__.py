"""Run the benchmarks named on the command line, or all of them."""

from __future__ import annotations

import argparse

from bench import composefs, dagger, mkosi

BENCHMARKS = {"mkosi": mkosi.main, "composefs": composefs.main, "dagger": dagger.main}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME", help=", ".join(BENCHMARKS)
    )
    parser.add_argument("--runs", type=int, default=7, help="pairs of samples (default 7)")
    args = parser.parse_args()
    for name in args.names or BENCHMARKS:
        BENCHMARKS[name](args.runs)


main()
