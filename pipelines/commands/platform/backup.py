"""disk-image platform backup: the whole platform in one file, while it is served or not."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from contextlib import closing

from pipelines.commands.platform.common import database, tell
from platform_server.backup.make import backup
from platform_server.state_folder import open_platform


def run(args: Namespace) -> int:
    """Write the file, and say what it holds; 1 when an upload is not there that should be."""
    platform = open_platform(args.state, database=database(args))
    with closing(platform.database):
        made = backup(platform, args.file, with_key=not args.without_key, told=tell)
    size = args.file.stat().st_size
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        counts = {name: each.rows for name, each in made.manifest.tables.items()}
        answer = {
            "file": str(args.file),
            "size_bytes": size,
            "has_key": not args.without_key,
            "rows": counts,
            "uploads": len(made.manifest.uploads),
            "warnings": list(made.warnings),
        }
        print(json.dumps(answer))
    else:
        secret = "without the key" if args.without_key else "as secret as the state folder"
        counted = f"{made.manifest.rows} rows and {len(made.manifest.uploads)} uploads"
        print(f"{args.file}: {counted} in {size} bytes, {secret}")
    return 1 if made.warnings else 0
