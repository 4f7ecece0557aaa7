"""disk-image platform restore: make a platform of a backup, on either database."""

from __future__ import annotations

import json
from argparse import Namespace

from pipelines.commands.platform.common import database, tell
from platform_server.backup.restore import restore
from platform_server.migrations.run import newest


def run(args: Namespace) -> int:
    """Restore, and say what there is now."""
    contents = restore(args.file, args.state, database(args), key=args.key, dry_run=args.dry_run, told=tell)
    manifest, head = contents.manifest, contents.head
    if args.json:
        answer = {
            "dry_run": args.dry_run,
            "state": str(args.state),
            "created_at": head.created_at.isoformat(),
            "schema": {"before": head.revision, "after": newest()},
            "rows": {name: each.rows for name, each in manifest.tables.items()},
            "uploads": len(manifest.uploads),
        }
        print(json.dumps(answer))
    else:
        would = "would be " if args.dry_run else ""
        print(
            f"{args.state}: {manifest.rows} rows and {len(manifest.uploads)} uploads of "
            f"{head.created_at:%Y-%m-%d %H:%M} UTC {would}restored"
        )
    return 0
