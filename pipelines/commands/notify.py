"""disk-image notify: tell the platform by its webhook of an image that is in a registry."""

from __future__ import annotations

import json
from argparse import Namespace

import anyio

from pipelines.commands.notifying import options, patience, resending, webhook
from pipelines.errors import UsageError
from platform_client.signatures import DELIVERY_ID, new_delivery_id
from platform_client.webhook import Taken, WebhookBody, deliver
from supply_chain.publish.announcement import announcement, read_facts
from supply_chain.reference import parse_reference
from supply_chain.verify.source import open_source


def run(args: Namespace) -> int:
    """Resolve REF once, and tell of what it is now."""
    reference = parse_reference(args.ref)
    whom, policy = webhook(args), patience(args)
    delivery_id = args.delivery_id or new_delivery_id()
    if not DELIVERY_ID.fullmatch(delivery_id):
        raise UsageError(
            f"--delivery-id: expected 1 to 64 letters, digits, _ and -, found {delivery_id[:80]!r}",
            "give it as an earlier attempt printed it, or leave it out",
        )

    async def describe() -> WebhookBody:
        async with open_source(args.ref, plain_http=args.plain_http, ca_file=args.ca_file) as source:
            facts = await read_facts(source)
        if args.git_sha is None and len(facts.git_shas) > 1:
            raise UsageError(
                f"{args.ref}: its provenances name several commits: {', '.join(facts.git_shas)}",
                "say which one to tell of: --git-sha SHA",
            )
        return announcement(args.platform_slug, reference, facts, git_sha=args.git_sha)

    body = anyio.run(describe)
    args.git_sha = body.git_sha
    again = ["disk-image", "notify", body.oci_ref, *options(args), "--delivery-id", delivery_id]

    async def tell() -> Taken:
        return await deliver(whom, delivery_id, body.to_bytes(), policy=policy, ca_file=args.ca_file)

    with resending(again):
        taken = anyio.run(tell)
    if args.json:
        print(json.dumps({**taken.to_json(), "delivery_id": delivery_id, "body": body.model_dump()}))
    else:
        publication = f", publication {taken.publication_id}" if taken.publication_id else ""
        print(f"{args.ref} is {body.oci_digest}")
        print(f"told {whom.origin}: {taken.status}{publication}")
        if taken.note:
            print(f"it says: {taken.note}")
    return 0
