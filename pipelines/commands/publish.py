"""disk-image publish: sign, push and notify; the same command goes on where it stopped."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from functools import partial

import anyio

from pipelines.commands.notifying import options, patience, resending, webhook
from supply_chain.publish.publish import Registry, Signing, Telling, publish
from supply_chain.reference import parse_reference
from supply_chain.trust import load_trust


def run(args: Namespace) -> int:
    """Publish; what each step did goes to standard error."""
    reference = parse_reference(args.ref)
    telling = None
    if args.platform_slug is not None:
        telling = Telling(webhook(args), args.platform_slug, args.git_sha, args.ca_file, patience(args))
    signing = Signing(load_trust(args.trust), os.environ, args.identity_token_file, args.identity)
    registry = Registry(args.plain_http, args.ca_file, tuple(args.mount_from or ()))
    report = partial(print, file=sys.stderr, flush=True)
    with resending(_again(args)):
        done = anyio.run(partial(publish, args.layout, reference, signing, registry, telling, report=report))
    if args.json:
        print(json.dumps(done.to_json()))
        return 0
    print(f"{done.pushed.reference} is {done.pushed.digest}")
    print(f"signed by {done.signer}")
    if done.told is None:
        print("no platform was told: name one with --platform-slug")
    else:
        publication = f", publication {done.told.publication_id}" if done.told.publication_id else ""
        print(f"told the platform: {done.told.status}{publication}")
    return 0


def _again(args: Namespace) -> list[str]:
    """The same command."""
    words = ["disk-image", "publish", str(args.layout), args.ref, "--trust", str(args.trust), *options(args)]
    if args.identity is not None:
        words += ["--as", args.identity]
    if args.identity_token_file is not None:
        words += ["--identity-token-file", str(args.identity_token_file)]
    return [*words, *(word for path in args.mount_from or () for word in ("--mount-from", path))]
