"""What notify and publish share: whom to tell, and how to say it again."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pipelines.errors import UsageError
from platform_client.calls import POLICY
from platform_client.errors import Conflict, PlatformError
from platform_client.settings import Webhook, webhook_settings
from supply_chain.registry import Policy


def webhook(args: Namespace) -> Webhook:
    """The webhook that the options or the environment name. Raises UsageError."""
    return webhook_settings(os.environ, url=args.webhook_url, secret_file=args.webhook_secret_file)


def patience(args: Namespace) -> Policy:
    """How long to go on. Raises UsageError."""
    if not 0 < args.patience <= 7 * 24 * 3600:
        raise UsageError(
            f"--patience: expected more than 0 and at most a week of seconds, found {args.patience}",
            "leave it out for ten minutes",
        )
    return replace(POLICY, patience=args.patience)


def options(args: Namespace) -> list[str]:
    """The options of `args` about platform and registry, as they would be typed; none is a secret."""
    words: list[str] = []
    for name in ("platform_slug", "webhook_url", "webhook_secret_file", "git_sha", "ca_file"):
        if (value := getattr(args, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if args.patience != POLICY.patience:
        words += ["--patience", f"{args.patience:g}"]
    return [*words, *(["--plain-http"] if args.plain_http else [])]


@contextmanager
def resending(command: Sequence[str]) -> Iterator[None]:
    """A failure to tell the platform ends with the command that tells it again; a conflict stays one."""
    try:
        yield
    except Conflict:
        raise
    except PlatformError as error:
        error.hint = f"{error.hint}, then: {shlex.join(command)}"
        raise
