"""Put the root together: packages, kernel modules, users, the recipe's files, the state of its units.

All of it happens on tar entries, without privileges and without unpacking: a link inside a package can't
lead a write anywhere but into the image.
"""

from __future__ import annotations

from pathlib import Path

from stages.rootfs.accounts import Accounts
from stages.rootfs.files import add_file, add_modules
from stages.rootfs.text import write_text
from stages.rootfs.units import Units
from stages.shared.job import Job, main
from stages.shared.tree import Tree


def program(job: Job) -> None:
    """Write the output `tree`."""
    clamp = job.source_date_epoch
    tree = Tree.load(job.input("packages"), clamp)
    add_modules(tree, Tree.load(job.input("modules"), clamp))
    add_hostname(tree, job.params["hostname"])

    accounts = Accounts(tree)
    for user in job.params["users"]:
        accounts.add(user)
    accounts.write()

    taken: dict[str, str] = {}
    for file in job.params["files"]:
        source: Path | None = job.input(file["input"]) if "input" in file else None
        add_file(tree, accounts, file, source, taken)

    units = Units(tree)
    wanted = job.params["units"]
    units.apply(wanted["enable"], wanted["disable"], wanted["mask"])
    tree.write(job.output("tree"))


def add_hostname(tree: Tree, hostname: str) -> None:
    """hostname(5) and hosts(5); a recipe's own file of that path takes their place."""
    write_text(tree, "etc/hostname", f"{hostname}\n")
    write_text(
        tree,
        "etc/hosts",
        f"127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n\n"
        "::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    )


if __name__ == "__main__":
    main(program)
