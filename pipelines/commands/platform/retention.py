"""disk-image platform retention: retire and purge what need not be kept, of every platform."""

from __future__ import annotations

import json
from argparse import Namespace
from contextlib import closing
from dataclasses import asdict
from functools import partial

import anyio

from pipelines.commands.platform.common import database, registries, start_log
from platform_server import sweeps
from platform_server.settings import Settings
from platform_server.state_folder import open_platform


def run(args: Namespace) -> int:
    """Sweep once; 1 when something that should be purged could not be."""
    start_log(args)
    platform = open_platform(args.state, Settings(registries=registries(args)), database=database(args))
    with closing(platform.database):
        swept = anyio.run(partial(sweeps.sweep_everything, platform, dry_run=args.dry_run))
    done = {platform_id: each for platform_id, each in swept.items() if each is not None}
    if args.json:
        counts = {str(platform_id): asdict(each) for platform_id, each in done.items()}
        print(json.dumps({"dry_run": args.dry_run, "per_platform": counts}))
    else:
        would = "would be " if args.dry_run else ""
        for platform_id, each in done.items():
            print(
                f"{platform_id}: {each.retired + each.stuck_retired} {would}retired, "
                f"{each.purged} {would}purged, {each.blocked} blocked"
            )
    # what is blocked is logged, and in the list of publications
    return 0 if len(done) == len(swept) and not any(each.blocked for each in done.values()) else 1
