"""disk-image push: an image and the referrers in its layout to a registry; only what is missing travels."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import partial

import anyio

from pipelines.errors import UsageError
from supply_chain.delta import FetchPlan, open_publication, plan_fetch
from supply_chain.push import PushPlan, PushResult, push


def run(args: Namespace) -> int:
    """Push, or with `--dry-run` say what a push would send and, with `--from`, what a node would fetch."""
    if args.older is not None and not args.dry_run:
        raise UsageError("--from is for --dry-run alone", "add --dry-run, or leave out --from")
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
    fetch = None if args.older is None else anyio.run(_fetch, args)
    if args.json:
        print(json.dumps({**done.to_json(), **({} if fetch is None else {"fetch": fetch.to_json()})}))
    elif isinstance(done, PushPlan):
        count = len(done.missing)
        print(
            f"{done.reference} would be sent {done.send_bytes} of {done.total_bytes} bytes in {count} blobs"
        )
        if fetch is not None:
            print(f"a node that has {args.older} would fetch")
            print(f"  {fetch.by_pack_bytes} bytes by pack (changed packs: {fetch.changed_packs})")
            print(f"  {fetch.by_object_bytes} bytes by object (new objects: {fetch.missing_objects})")
    else:
        print(f"{done.reference} is {done.digest}")
        sent = f"{done.blobs_sent} blobs ({done.blob_bytes_sent} bytes)"
        print(f"sent {sent}, mounted {done.blobs_mounted}, already there {done.blobs_present}")
    return 0


async def _fetch(args: Namespace) -> FetchPlan:
    given = {"plain_http": args.plain_http, "ca_file": args.ca_file}
    async with open_publication(str(args.layout)) as new, open_publication(args.older, **given) as old:
        return await plan_fetch(new, old)
