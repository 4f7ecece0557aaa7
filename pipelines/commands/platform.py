"""disk-image platform: the embedded platform, which is an extra of the package."""

from __future__ import annotations

import json
import logging
import os
import sys
from argparse import Namespace
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from pipelines.errors import UsageError


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
    return {"init": _init, "serve": _serve, "token": _token, "migrate": _migrate}[args.action](args)


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
    from platform_server.node_platforms import check_trusted
    from platform_server.serve import listen, serve
    from platform_server.settings import Registries, Settings
    from platform_server.state_folder import open_platform

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
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
        registries=Registries(
            trusted=tuple(check_trusted(each, "--trusted-registry") for each in args.trusted_registry or ()),
            private=tuple(check_trusted(each, "--private-registry") for each in args.private_registry or ()),
            plain_http=args.plain_http,
            ca_file=args.ca_file,
        ),
    )
    platform = open_platform(args.state, settings)

    def started() -> None:
        if args.json:
            print(json.dumps({"url": url}), flush=True)
        print(f"serving {args.state} at {url}", file=sys.stderr)

    serve(platform, listening, started)
    return 0


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
