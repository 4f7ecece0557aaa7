"""disk-image explain: why each stage would run, or why not."""

from __future__ import annotations

import json
from argparse import Namespace

from pipelines.commands.request import load_request
from pipelines.explain import explain
from pipelines.store import Store


def run(args: Namespace) -> int:
    """One line a stage; runs nothing."""
    store = Store(args.store)
    with store.use(writing=False):
        request = load_request(args, store)
        found = explain(request.plan, request.sources, store)
    if args.json:
        print(
            json.dumps([{"stage": one.stage, "result": one.result, "why": list(one.why)} for one in found])
        )
        return 0
    width = max(len(one.stage) for one in found)
    for one in found:
        print(f"{one.stage:<{width}}  {one.result:<6}  {'; '.join(one.why)}")
    return 0
