"""Figures in columns: medians of the runs, and how far apart these were."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], places: int = 0) -> str:
    """Median, then the smallest and the largest."""
    middle = statistics.median(values)
    return f"{middle:.{places}f} ({min(values):.{places}f} to {max(values):.{places}f})"


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Print the ratio pair by pair: what ran one after the other saw the same machine."""
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"  ratio {name}: median {spread(found, 2)}, {len(found)} pairs")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their heads; the first column to the left, the others to the right."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  " + "  ".join((first.strip().ljust(widths[0]), *others)))
