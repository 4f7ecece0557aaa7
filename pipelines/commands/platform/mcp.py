"""disk-image platform mcp: the operators' actions over MCP, for the program that starts this one."""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace
from contextlib import closing

import anyio

from pipelines.commands.platform.common import database, start_log, token
from pipelines.errors import UsageError
from platform_server.mcp import stdio
from platform_server.mcp.tools import Reading
from platform_server.postgres import Server
from platform_server.settings import Settings, public_url_of
from platform_server.state_folder import open_platform


def run(args: Namespace) -> int:
    """Serve until standard input ends."""
    if args.show_secrets and not sys.stderr.isatty():
        raise UsageError(
            "--show-secrets: expected a terminal as standard error, found none where secrets are asked for",
            "leave it out: answers then say how disk-image platform secret reads each one, once",
        )
    start_log(args)
    # Ctrl-C ends it at once: what waits for standard input can't be cancelled, and transactions are whole.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    user = token()
    platform = open_platform(
        args.state, Settings(public_url=public_url_of(args.public_url)), database=database(args)
    )
    reading = None if args.show_secrets else Reading(read_with(args), platform.settings.public_url)
    with closing(platform.database):
        anyio.run(stdio.serve, platform, user, reading)
    return 0


def read_with(args: Namespace) -> list[str]:
    """The options with which `disk-image platform secret` finds the same platform from any terminal. They go
    into answers, so a database's URL with a password is left to the reader's environment.
    """
    options = ["--state", os.path.abspath(args.state)]
    where = database(args)
    if where is not None and not Server(where).has_password:
        options += ["--database", where]
    return options
