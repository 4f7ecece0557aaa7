"""disk-image platform serve: answer webhooks and operators, and verify."""

from __future__ import annotations

import json
import logging
import os
from argparse import Namespace
from pathlib import Path

from pipelines.commands.platform.common import database, registries, start_log
from platform_server.serve import listen, serve
from platform_server.settings import Settings
from platform_server.state_folder import open_platform

log = logging.getLogger(__name__)


def run(args: Namespace) -> int:
    """Serve until a signal ends it."""
    start_log(args)
    listening = listen(args.host, args.port)
    host = f"[{args.host}]" if ":" in args.host else args.host
    url = f"http://{host}:{listening.getsockname()[1]}"
    trust = args.trust or (Path(found) if (found := os.environ.get("DISK_IMAGE_TRUST")) else None)
    if trust is None:
        log.warning("no --trust: nothing can be verified, so every image will be refused")
    settings = Settings(
        public_url=(args.public_url or url).rstrip("/"),
        trust=trust,
        workers=args.workers,
        proxies=tuple(args.proxy or ()),
        registries=registries(args),
    )
    platform = open_platform(args.state, settings, database=database(args))

    def started() -> None:
        if args.json:
            print(json.dumps({"url": url}), flush=True)
        log.info("serving %s at %s", args.state, url)

    serve(platform, listening, started)
    return 0
