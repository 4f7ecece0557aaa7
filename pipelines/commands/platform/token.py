"""disk-image platform token: another token, or none of a user's any more."""

from __future__ import annotations

import json
from argparse import Namespace
from contextlib import closing

from pipelines.commands.platform.common import database
from platform_server.accounts import revoke_tokens, user_token
from platform_server.state_folder import open_platform


def run(args: Namespace) -> int:
    """Print the token, or how many were revoked."""
    platform = open_platform(args.state, database=database(args))
    permissions = tuple(args.permission or ("*",))
    answer: dict[str, str | int] = {"account": args.account, "user": args.user}
    write = platform.database.write_now
    with closing(platform.database):
        if args.revoke:
            answer["revoked"] = write(
                lambda on: revoke_tokens(on, args.account, args.user, platform.clock())
            )
        else:
            answer["token"] = write(
                lambda on: user_token(on, args.account, args.user, permissions, platform.clock())
            )
    print(json.dumps(answer) if args.json else answer.get("token", f"{answer.get('revoked')} revoked"))
    return 0
