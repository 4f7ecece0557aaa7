"""disk-image platform serve: answer webhooks and operators, and verify."""

from __future__ import annotations

import json
import logging
import os
from argparse import Namespace
from pathlib import Path

from pipelines.commands.platform.common import database, registries, start_log
from pipelines.errors import DiskImageError, UsageError
from platform_server.listening import handed_over, listen, listen_at, name_of
from platform_server.logs import LogFormat
from platform_server.proxies import check_proxy
from platform_server.serve import serve
from platform_server.settings import Settings, limits_of, public_url_of, workers_of
from platform_server.state_folder import open_platform
from platform_server.tls import Tls

log = logging.getLogger(__name__)


def run(args: Namespace) -> int:
    """Serve until a signal ends it."""
    form = start_log(args)
    try:
        _serve(args)
    except DiskImageError as error:
        if form is LogFormat.TEXT:
            raise
        log.critical(error.what, extra={"hint": error.hint})
        return error.exit_code
    return 0


def _serve(args: Namespace) -> None:
    tls = _tls(args)
    listening = handed_over() or [listen_at(args.socket) if args.socket else listen(args.host, args.port)]
    url = name_of(listening[0], "https" if tls else "http")
    trust = args.trust or (Path(found) if (found := os.environ.get("DISK_IMAGE_TRUST")) else None)
    if trust is None:
        log.warning("no --trust: nothing can be verified, so every image will be refused")
    if args.public_url is None and url.startswith("unix:"):
        log.warning("no --public-url: nobody else can use the URLs that are given out")
    settings = Settings(
        public_url=public_url_of(args.public_url) if args.public_url else url,
        trust=trust,
        workers=workers_of(args.workers),
        proxies=tuple(check_proxy(each) for each in args.proxy or ()),
        limits=limits_of(args.limit or ()),
        registries=registries(args),
    )
    platform = open_platform(args.state, settings, database=database(args))

    def started() -> None:
        if args.json:
            print(json.dumps({"url": url}), flush=True)
        log.info("serving %s at %s", args.state, url)

    try:
        serve(platform, listening, started, tls=tls, metrics=_metrics(args.metrics))
    finally:
        if args.socket:
            args.socket.unlink(missing_ok=True)


def _tls(args: Namespace) -> Tls | None:
    if (args.tls_certificate is None) != (args.tls_key is None):
        raise UsageError("--tls-certificate and --tls-key go together", "name both, or none behind a proxy")
    return Tls(args.tls_certificate, args.tls_key) if args.tls_certificate else None


def _metrics(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--metrics {text}: expected [HOST:]PORT", "--metrics 9464")
    return host.strip("[]") or "127.0.0.1", int(port)
