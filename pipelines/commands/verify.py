"""disk-image verify: an image's signature, SBOM and provenance, and that they say what is there."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import anyio

from pipelines.errors import UsageError
from supply_chain.errors import VerificationError
from supply_chain.files import read_regular
from supply_chain.statement import STATEMENT_LIMIT
from supply_chain.trust import load_trust
from supply_chain.verify.image import Verified, verify_image
from supply_chain.verify.policy import signer_policy
from supply_chain.verify.source import open_source
from supply_chain.verify.steps import Step


def run(args: Namespace) -> int:
    """Verify; each step gets a line, up to the first that does not hold."""
    policy = signer_policy(
        identity=args.identity,
        identity_regexp=args.identity_regexp,
        issuer=args.issuer,
        issuer_regexp=args.issuer_regexp,
    )
    trust = load_trust(args.trust)
    lock = None if args.lock is None else _lock(args.lock)

    def show(line: str) -> None:
        if not args.json:
            print(line, flush=True)

    async def verify() -> Verified:
        async with open_source(args.image, plain_http=args.plain_http, ca_file=args.ca_file) as source:
            return await verify_image(
                source,
                trust,
                policy,
                lock=lock,
                read_layers=args.layers or None,
                on_step=lambda done: show(done.line),
            )

    try:
        verified = anyio.run(verify)
    except VerificationError as error:
        if error.step:
            show(Step(error.step).line("FAILED"))
        raise
    if args.json:
        print(json.dumps(verified.to_json()))
        return 0
    for each in verified.ignored:
        print(f"passed over {each.digest}: {each.why}")
    print(f"{verified.image} is {verified.digest}")
    print(f"signed by {verified.identity} on {verified.signed_at:%Y-%m-%d %H:%M:%S} UTC")
    return 0


def _lock(path: Path) -> bytes:
    content = read_regular(path, STATEMENT_LIMIT)
    if len(content) > STATEMENT_LIMIT:
        raise UsageError(
            f"{path}: expected a lock of at most {STATEMENT_LIMIT} bytes, found more",
            "name the lock.json that the image was built from",
        )
    return content
