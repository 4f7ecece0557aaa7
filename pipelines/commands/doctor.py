"""disk-image doctor: what this machine has and lacks for building and booting."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict

from pipelines.doctor import doctor
from pipelines.store import Store


def run(args: Namespace) -> int:
    """Exit code 1 when something is missing."""
    checks = doctor(Store(args.store))
    if args.json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        for check in checks:
            print(f"{'ok  ' if check.ok else 'FAIL'}  {check.check}: {check.found}")
            if not check.ok:
                print(f"      to do: {check.to_do}")
    return 0 if all(check.ok for check in checks) else 1
