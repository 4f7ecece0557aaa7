"""disk-image platform secret: read a secret that an action made, once."""

from __future__ import annotations

import json
from argparse import Namespace
from contextlib import closing
from uuid import UUID

import anyio

from pipelines.commands.platform.common import database, token
from pipelines.errors import UsageError
from platform_client.actions import ReadSecret, open_actions
from platform_server import secret_pickups
from platform_server.state_folder import open_platform
from platform_server.tokens import authenticate


def run(args: Namespace) -> int:
    """Print the secret."""
    user = token()
    found = _from_folder(args, user) if args.url is None else anyio.run(_from_server, args, user)
    print(json.dumps(found.model_dump()) if args.json else found.secret)
    return 0


async def _from_server(args: Namespace, user: str) -> ReadSecret:
    async with open_actions(args.url, user, ca_file=args.ca_file) as actions:
        return await actions.read_secret(args.secret_id)


def _from_folder(args: Namespace, user: str) -> ReadSecret:
    try:
        secret_id = UUID(args.secret_id)
    except ValueError:
        raise UsageError(
            f"ID: expected a UUID, found {args.secret_id[:80]!r}", "name it as the answer does"
        ) from None
    platform = open_platform(args.state, database=database(args))
    with closing(platform.database):
        row, secret = platform.database.write_now(
            lambda on: secret_pickups.take(
                on, authenticate(on, user), platform.sealer, secret_id, platform.clock()
            )
        )
    return ReadSecret(action=row.action, field=row.field, secret=secret)
