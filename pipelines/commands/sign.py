"""disk-image sign: an image's signature, SBOM and provenance, beside it in its layout."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from functools import partial

import anyio

from supply_chain.signing.sign import sign_layout
from supply_chain.trust import load_trust


def run(args: Namespace) -> int:
    """Sign the layout, or say that it is signed already."""
    done = anyio.run(
        partial(
            sign_layout,
            args.layout,
            load_trust(args.trust),
            os.environ,
            token_file=args.identity_token_file,
            identity=args.identity,
        )
    )
    if args.json:
        print(json.dumps(done.to_json()))
    else:
        print(f"{args.layout}: {done.digest} {'is' if done.signed else 'was already'} signed")
        print(f"as {done.identity}, vouched for by {done.issuer}")
    return 0
