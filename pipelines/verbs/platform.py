"""The verb that runs the embedded platform."""

from __future__ import annotations

from pathlib import Path

from pipelines.verbs.arguments import Verbs, verb


def declare(verbs: Verbs) -> None:
    """platform."""
    platform = verb(
        verbs,
        "platform",
        "set up and serve the embedded platform, which verifies and publishes images",
        "disk-image platform init --state platform --json && disk-image platform serve --state platform",
    )
    platform.add_argument(
        "action",
        choices=("init", "serve", "token", "migrate", "retention"),
        help="init: make a platform and its administrator's token; serve: answer webhooks and operators, "
        "and verify; token: make another token; migrate: bring the database to this program's schema; "
        "retention: retire and purge what need not be kept, as serve does daily",
    )
    platform.add_argument("--state", type=Path, required=True, metavar="DIR", help="the platform's folder")
    serve = platform.add_argument_group("serve")
    serve.add_argument("--host", default="127.0.0.1", metavar="H", help="the address to listen on")
    serve.add_argument("--port", type=int, default=8000, metavar="P", help="0: any free one")
    serve.add_argument(
        "--public-url", metavar="URL", help="where others reach it (else http://HOST:PORT): webhooks' URLs"
    )
    serve.add_argument(
        "--proxy",
        action="append",
        metavar="ADDRESS",
        help="believe this proxy's X-Forwarded-For: rates are per address; repeatable",
    )
    serve.add_argument(
        "--trust",
        type=Path,
        metavar="DIR|FILE",
        help="what images are verified with (else DISK_IMAGE_TRUST); without one every image is refused",
    )
    serve.add_argument("--workers", type=int, default=1, metavar="N", help="verifications side by side")
    asked = platform.add_argument_group("serve, retention", "which registries are asked, and how")
    asked.add_argument(
        "--trusted-registry",
        action="append",
        metavar="HOST[:PORT][/PATH]",
        help="take images from there for every node platform; repeatable",
    )
    asked.add_argument(
        "--private-registry",
        action="append",
        metavar="HOST[:PORT]",
        help="this host may have a private address; repeatable",
    )
    asked.add_argument("--plain-http", action="store_true", help="for registries on this machine only")
    asked.add_argument(
        "--ca-file", type=Path, metavar="PEM", help="trust this authority besides the system's"
    )
    retention = platform.add_argument_group("retention")
    retention.add_argument(
        "--dry-run", action="store_true", help="count what would be retired and purged, and change nothing"
    )
    token = platform.add_argument_group("token", "a user's token; user and account are made if they are new")
    token.add_argument("--account", default="default", metavar="NAME", help="whose images (default)")
    token.add_argument("--user", default="admin", metavar="NAME", help="whose token (admin)")
    token.add_argument(
        "--permission",
        action="append",
        metavar="NAME",
        help="system.platforms.read and so on; repeatable; * is every one (the default)",
    )
    token.add_argument("--revoke", action="store_true", help="revoke all of the user's tokens instead")
    migrate = platform.add_argument_group("migrate")
    migrate.add_argument(
        "--revision", default="head", metavar="NAME", help="another schema than this program's"
    )
