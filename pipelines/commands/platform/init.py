"""disk-image platform init: make a platform, and its administrator's token."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from datetime import UTC, datetime

from pipelines.commands.platform.common import database
from platform_server.state_folder import initialise


def run(args: Namespace) -> int:
    """Print the token, which is shown this once."""
    token = initialise(args.state, datetime.now(UTC), database(args))
    if args.json:
        print(json.dumps({"state": str(args.state), "admin_token": token}))
    else:
        print(token)
        print(
            f"the administrator's token, shown once; next disk-image platform serve --state {args.state}",
            file=sys.stderr,
        )
    return 0
