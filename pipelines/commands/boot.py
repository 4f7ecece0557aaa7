"""disk-image boot: boot an image layout in QEMU, always anew, and check what the guest measured."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace

from pipelines.commands.build import transport
from pipelines.commands.request import TOOLS_LOCK, load_tools_lock
from pipelines.errors import StageError
from pipelines.plan import boot_plan
from pipelines.recipe import host_arch
from pipelines.sources import Sources
from pipelines.store import Store


def run(args: Namespace) -> int:
    """Exit code 0 only when the guest verified the digest that the image states and reached multi-user."""
    from pipelines.local import run as run_plan
    from pipelines.progress import reporter

    arch = host_arch()
    # Where `build --relock` had to lock the tools anew, the new lock lies beside the layout.
    relocked = args.layout.absolute().with_name(f"{args.layout.name}.tools.lock")
    lock = args.tools_lock or (relocked if relocked.is_file() else TOOLS_LOCK)
    plan = boot_plan(load_tools_lock(lock, arch), arch)
    store = Store(args.store)
    sources = Sources(externals={"layout": args.layout})
    with store.use():
        try:
            results = run_plan(
                plan, ("boot",), sources, store,
                transport=transport(args), reporter=reporter(), jobs=args.jobs, anew=("boot",),
            )  # fmt: skip
        except StageError as error:
            if args.console is not None and error.stage == "boot" and error.log is not None:
                shutil.copyfile(error.log, args.console)
            raise
        verdict = json.loads(store.blob(results.output("boot", "verdict").content.digest).read_bytes())
        if args.console is not None:
            args.console.unlink(missing_ok=True)
            shutil.copyfile(store.blob(results.output("boot", "console").content.digest), args.console)
    verdict["composefs_digest"] = f"sha256:{verdict['composefs_digest']}"
    if args.json:
        print(json.dumps(verdict))
    else:
        print(f"disk-image: root verified {verdict['composefs_digest']}")
        print(f"booted            {verdict['seconds']} s from QEMU's start to multi-user")
    return 0
