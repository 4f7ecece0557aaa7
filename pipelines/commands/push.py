"""disk-image push: an image and the referrers in its layout to a registry; only what is missing travels."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import partial

import anyio

from supply_chain.push import PushPlan, PushResult, push


def run(args: Namespace) -> int:
    """Push, or with `--dry-run` say what a push would send."""
    done: PushPlan | PushResult = anyio.run(
        partial(
            push,
            args.layout,
            args.ref,
            dry_run=args.dry_run,
            plain_http=args.plain_http,
            ca_file=args.ca_file,
            mount_from=tuple(args.mount_from or ()),
        )
    )
    if args.json:
        print(json.dumps(done.to_json()))
    elif isinstance(done, PushPlan):
        count = len(done.missing)
        print(
            f"{done.reference} would be sent {done.send_bytes} of {done.total_bytes} bytes in {count} blobs"
        )
    else:
        print(f"{done.reference} is {done.digest}")
        sent = f"{done.blobs_sent} blobs ({done.blob_bytes_sent} bytes)"
        print(f"sent {sent}, mounted {done.blobs_mounted}, already there {done.blobs_present}")
    return 0
