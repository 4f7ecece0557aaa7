"""disk-image platform migrate: bring the database to this program's schema, or to another one."""

from __future__ import annotations

import json
from argparse import Namespace

from pipelines.commands.platform.common import database
from platform_server.migrations.run import newest
from platform_server.state_folder import migrate_folder


def run(args: Namespace) -> int:
    """Migrate, and say from where to where."""
    before = migrate_folder(args.state, args.revision, database(args))
    after = newest() if args.revision == "head" else args.revision
    if args.json:
        print(json.dumps({"before": before, "after": after}))
    else:
        print(f"{args.state}: schema {before or 'none'} → {after}")
    return 0
