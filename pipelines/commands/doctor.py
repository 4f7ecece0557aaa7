"""disk-image doctor: what this machine has and lacks for building and booting, and whether a trust's
services answer.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict

from pipelines.doctor import Check, doctor
from pipelines.store import Store


def run(args: Namespace) -> int:
    """Exit code 1 when something is missing."""
    checks = doctor(Store(args.store))
    if args.trust is not None:
        import anyio

        from supply_chain.trust import load_trust
        from supply_chain.trust.check import check_trust

        checks += anyio.run(check_trust, load_trust(args.trust))
    return report(checks, as_json=args.json)


def report(checks: Sequence[Check], *, as_json: bool) -> int:
    """Print a line for each check, and for each that failed one of what to do; the exit code."""
    if as_json:
        print(json.dumps({"checks": [asdict(check) for check in checks]}))
    for check in () if as_json else checks:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.check}: {check.found}")
        if not check.ok:
            print(f"      to do: {check.to_do}")
    return 0 if all(check.ok for check in checks) else 1
