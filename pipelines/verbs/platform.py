"""The verb that runs the embedded platform: an action each for what is done with one."""

from __future__ import annotations

from pathlib import Path

from pipelines.verbs.arguments import Parser, Verbs, registry, verb


def declare(verbs: Verbs) -> None:
    """platform."""
    platform = verbs.add_parser(
        "platform",
        help="set up and serve the embedded platform, which verifies and publishes images",
        description="Set up and serve the embedded platform, which verifies and publishes images.",
    )
    actions = platform.add_subparsers(dest="action", required=True, metavar="ACTION")
    _init(actions)
    _serve(actions)
    _token(actions)
    _migrate(actions)
    _retention(actions)
    _mcp(actions)
    _secret(actions)
    _backup(actions)
    _restore(actions)


def _action(actions: Verbs, name: str, does: str, example: str) -> Parser:
    """An action with the folder that all of them work on; it runs `pipelines.commands.platform.<name>`."""
    parser = verb(actions, name, does, f"disk-image platform {name} {example}", f"platform.{name}")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the platform's folder")
    _database(parser)
    return parser


def _database(parser: Parser) -> None:
    parser.add_argument(
        "--database",
        metavar="URL",
        help="postgresql://USER@HOST/NAME (else DISK_IMAGE_PLATFORM_DATABASE, else the folder's own)",
    )


def _init(actions: Verbs) -> None:
    _action(actions, "init", "make a platform and its administrator's token", "--state platform --json")


def _serve(actions: Verbs) -> None:
    serve = _action(
        actions,
        "serve",
        "answer webhooks and operators, and verify",
        "--state platform --port 8000 --trust trust",
    )
    serve.add_argument("--host", default="127.0.0.1", metavar="H", help="the address to listen on")
    serve.add_argument("--port", type=int, default=8000, metavar="P", help="0: any free one")
    serve.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="listen there instead, for a proxy on this machine",
    )
    serve.add_argument(
        "--tls-certificate", type=Path, metavar="PEM", help="speak HTTPS with it; SIGHUP reads it again"
    )
    serve.add_argument("--tls-key", type=Path, metavar="PEM", help="its key")
    serve.add_argument(
        "--public-url", metavar="URL", help="where others reach it (else http://HOST:PORT): webhooks' URLs"
    )
    serve.add_argument(
        "--proxy",
        action="append",
        metavar="ADDRESS[/BITS]",
        help="believe this proxy's X-Forwarded-For: rates are per address; repeatable",
    )
    serve.add_argument(
        "--limit",
        action="append",
        metavar="NAME=VALUE",
        help="another limit than the default (docs/reference/platform-limits.md); repeatable",
    )
    serve.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        help="answer GET /metrics there without a token (HOST: 127.0.0.1)",
    )
    serve.add_argument(
        "--trust",
        type=Path,
        metavar="DIR|FILE",
        help="what images are verified with (else DISK_IMAGE_TRUST); without one every image is refused",
    )
    serve.add_argument("--workers", type=int, default=1, metavar="N", help="verifications side by side (1)")
    _registries(serve)
    _log(serve)


def _token(actions: Verbs) -> None:
    token = _action(
        actions,
        "token",
        "make another token; user and account are made if they are new",
        "--state platform --user dashboard --permission system.platforms.read",
    )
    token.add_argument("--account", default="default", metavar="NAME", help="whose images (default)")
    token.add_argument("--user", default="admin", metavar="NAME", help="whose token (admin)")
    token.add_argument(
        "--permission",
        action="append",
        metavar="NAME",
        help="system.platforms.read and so on; repeatable; * is every one (the default)",
    )
    token.add_argument("--revoke", action="store_true", help="revoke all of the user's tokens instead")


def _migrate(actions: Verbs) -> None:
    migrate = _action(actions, "migrate", "bring the database to this program's schema", "--state platform")
    migrate.add_argument(
        "--revision", default="head", metavar="NAME", help="another schema than this program's"
    )


def _retention(actions: Verbs) -> None:
    retention = _action(
        actions,
        "retention",
        "retire and purge what need not be kept, as serve does daily",
        "--state platform --dry-run",
    )
    retention.add_argument(
        "--dry-run", action="store_true", help="count what would be retired and purged, and change nothing"
    )
    _registries(retention)
    _log(retention)


def _mcp(actions: Verbs) -> None:
    mcp = _action(
        actions,
        "mcp",
        "be an MCP server on standard input and output, for the user of DISK_IMAGE_PLATFORM_TOKEN",
        "--state platform",
    )
    mcp.add_argument(
        "--public-url",
        default="http://127.0.0.1:8000",
        metavar="URL",
        help="where serve is reached (http://127.0.0.1:8000): webhooks' URLs",
    )
    mcp.add_argument(
        "--show-secrets",
        action="store_true",
        help="put new secrets into answers; only where standard error is a terminal",
    )
    _log(mcp)


def _secret(actions: Verbs) -> None:
    secret = verb(
        actions,
        "secret",
        "read a secret that an action made for the user of DISK_IMAGE_PLATFORM_TOKEN; it can be read once",
        "disk-image platform secret 019ab5f2-… --url https://platform.example",
        "platform.secret",
    )
    secret.add_argument("secret_id", metavar="ID", help="as read_secret_once in the answer says")
    where = secret.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", metavar="URL", help="the platform that serves")
    where.add_argument("--state", type=Path, metavar="DIR", help="or its folder, on its own machine")
    _database(secret)
    secret.add_argument(
        "--ca-file", type=Path, metavar="PEM", help="trust this authority besides the system's"
    )


def _backup(actions: Verbs) -> None:
    backup = _action(
        actions, "backup", "write the whole platform into one file", "--state platform platform.backup"
    )
    backup.add_argument("file", type=Path, metavar="FILE", help="a new file, which only its owner can read")
    backup.add_argument(
        "--without-key",
        action="store_true",
        help="leave out the key that opens secrets: restore then asks for it",
    )


def _restore(actions: Verbs) -> None:
    restore = _action(
        actions, "restore", "make a platform of a backup, where there is none", "--state new platform.backup"
    )
    restore.add_argument("file", type=Path, metavar="FILE", help="what backup wrote, of either database")
    restore.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="the platform's secrets.key, for a backup that has none or may have been changed",
    )
    restore.add_argument(
        "--dry-run", action="store_true", help="check the backup and the place, and change nothing"
    )


def _log(parser: Parser) -> None:
    log = parser.add_argument_group("log", "on standard error, one line for each thing that happened")
    log.add_argument(
        "--log-format",
        choices=("json", "text"),
        help="else text on a terminal, json elsewhere",
    )
    log.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the least (info)",
    )


def _registries(parser: Parser) -> None:
    asked = parser.add_argument_group("registries", "which are asked, and how")
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
    registry(asked)
