"""disk-image cache gc | check."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict

from pipelines.collect import DEFAULT_MAX_AGE, check, collect
from pipelines.store import Store

DAY, GIB = 86400.0, 1 << 30


def run(args: Namespace) -> int:
    """Exit code 1 when `check` finds something wrong, repaired or not."""
    store = Store(args.store)
    return _collect(args, store) if args.action == "gc" else _check(args, store)


def _collect(args: Namespace, store: Store) -> int:
    max_age = DEFAULT_MAX_AGE if args.max_age is None else args.max_age * DAY
    max_size = None if args.max_size is None else int(args.max_size * GIB)
    done = collect(store, max_age=max_age, max_size=max_size)
    if args.json:
        print(json.dumps(asdict(done)))
    else:
        freed, kept = done.freed / 1e6, done.size / 1e6
        print(f"removed {done.removed} results ({freed:.1f} MB), kept {done.kept} ({kept:.1f} MB)")
    return 0


def _check(args: Namespace, store: Store) -> int:
    problems = check(store, repair=args.repair)
    if args.json:
        print(json.dumps([asdict(problem) for problem in problems]))
        return 1 if problems else 0
    for problem in problems:
        print(f"{problem}\n  to do: {problem.hint}")
    print(f"{len(problems)} problems" if problems else "every entry is what it was")
    return 1 if problems else 0
