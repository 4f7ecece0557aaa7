"""disk-image platform: the embedded platform, which is an extra of the package."""

from __future__ import annotations

import json
import logging
import os
import sys
from argparse import Namespace
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import UsageError

if TYPE_CHECKING:
    from platform_server.settings import Registries


def run(args: Namespace) -> int:
    """One of the actions."""
    try:
        import fastapi
        import sqlalchemy  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"the platform needs the package {error.name}", "pip install 'disk-image-ci[platform]'"
        ) from None
    del fastapi
    actions = {
        "init": _init,
        "serve": _serve,
        "token": _token,
        "migrate": _migrate,
        "retention": _retention,
    }
    return actions[args.action](args)


def _init(args: Namespace) -> int:
    from platform_server.state_folder import initialise

    token = initialise(args.state, datetime.now(UTC))
    if args.json:
        print(json.dumps({"state": str(args.state), "admin_token": token}))
    else:
        print(token)
        print(
            f"the administrator's token, shown once; next disk-image platform serve --state {args.state}",
            file=sys.stderr,
        )
    return 0


def _serve(args: Namespace) -> int:
    from platform_server.serve import listen, serve
    from platform_server.settings import Settings
    from platform_server.state_folder import open_platform

    _log()
    listening = listen(args.host, args.port)
    host = f"[{args.host}]" if ":" in args.host else args.host
    url = f"http://{host}:{listening.getsockname()[1]}"
    trust = args.trust or (Path(found) if (found := os.environ.get("DISK_IMAGE_TRUST")) else None)
    if trust is None:
        logging.warning("no --trust: nothing can be verified, so every image will be refused")
    settings = Settings(
        public_url=(args.public_url or url).rstrip("/"),
        trust=trust,
        workers=args.workers,
        proxies=tuple(args.proxy or ()),
        registries=_registries(args),
    )
    platform = open_platform(args.state, settings)

    def started() -> None:
        if args.json:
            print(json.dumps({"url": url}), flush=True)
        print(f"serving {args.state} at {url}", file=sys.stderr)

    serve(platform, listening, started)
    return 0


def _retention(args: Namespace) -> int:
    import anyio

    from platform_server import sweeps
    from platform_server.settings import Settings
    from platform_server.state_folder import open_platform

    _log()
    platform = open_platform(args.state, Settings(registries=_registries(args)))
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


def _registries(args: Namespace) -> Registries:
    from platform_server.node_platforms import check_trusted
    from platform_server.settings import Registries

    return Registries(
        trusted=tuple(check_trusted(each, "--trusted-registry") for each in args.trusted_registry or ()),
        private=tuple(check_trusted(each, "--private-registry") for each in args.private_registry or ()),
        plain_http=args.plain_http,
        ca_file=args.ca_file,
    )


def _log() -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


def _token(args: Namespace) -> int:
    from platform_server.accounts import revoke_tokens, user_token
    from platform_server.state_folder import open_platform

    platform = open_platform(args.state)
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


def _migrate(args: Namespace) -> int:
    from platform_server.migrations.run import newest
    from platform_server.state_folder import migrate_folder

    before = migrate_folder(args.state, args.revision)
    after = newest() if args.revision == "head" else args.revision
    if args.json:
        print(json.dumps({"before": before, "after": after}))
    else:
        print(f"{args.state}: schema {before or 'none'} → {after}")
    return 0
