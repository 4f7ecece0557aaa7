"""What several actions make of their arguments."""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace

from pipelines.errors import UsageError
from platform_server import logs
from platform_server.logs import LogFormat, default_format
from platform_server.node_platforms import check_trusted
from platform_server.postgres import Server
from platform_server.settings import Registries

_DATABASE = "DISK_IMAGE_PLATFORM_DATABASE"
_TOKEN = "DISK_IMAGE_PLATFORM_TOKEN"


def database(args: Namespace) -> str | None:
    """The database's URL, by flag, then by environment; None is the state folder's own database.

    Raises UsageError for a password on the command line, where every user of the machine can read it.
    """
    if args.database is None:
        return os.environ.get(_DATABASE) or None
    given: str = args.database
    if Server(given).has_password:
        raise UsageError(
            "--database has a password in it, which every user of this machine can read (ps)",
            f"put the URL into {_DATABASE}, or the password into PGPASSWORD or a passfile; then change it",
        )
    return given


def token() -> str:
    """The user's token, which is never an argument. Raises UsageError when there is none."""
    found = os.environ.get(_TOKEN)
    if not found:
        raise UsageError(
            f"{_TOKEN} is not set", f"export {_TOKEN}=…, as disk-image platform token prints it"
        )
    return found


def registries(args: Namespace) -> Registries:
    """Which registries are asked, and how. Raises Invalid."""
    return Registries(
        trusted=tuple(check_trusted(each, "--trusted-registry") for each in args.trusted_registry or ()),
        private=tuple(check_trusted(each, "--private-registry") for each in args.private_registry or ()),
        plain_http=args.plain_http,
        ca_file=args.ca_file,
    )


def start_log(args: Namespace) -> LogFormat:
    """Log to standard error as the arguments say; how lines look."""
    form = LogFormat(args.log_format) if args.log_format else default_format()
    logs.start_log(form, logging.getLevelNamesMapping()[args.log_level.upper()])
    return form


def tell(line: str) -> None:
    """One line of what was done, on standard error."""
    print(line, file=sys.stderr, flush=True)
