"""What several actions make of their arguments."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace

from platform_server.node_platforms import check_trusted
from platform_server.settings import Registries


def registries(args: Namespace) -> Registries:
    """Which registries are asked, and how. Raises Invalid."""
    return Registries(
        trusted=tuple(check_trusted(each, "--trusted-registry") for each in args.trusted_registry or ()),
        private=tuple(check_trusted(each, "--private-registry") for each in args.private_registry or ()),
        plain_http=args.plain_http,
        ca_file=args.ca_file,
    )


def start_log() -> None:
    """Log to standard error."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
