"""Unpack every package of the input repository into one tools tree.

No maintainer script runs and nothing of the host is used, so the tree depends on the packages alone: any
host and any user get the same bytes. What scripts would have set up, and our stages need, is declared in
`base`.
"""

from __future__ import annotations

from stages.shared.job import Job, main
from stages.tools.merge import merge
from stages.tools.unpack import unpack_all


def program(job: Job) -> None:
    """Write the output `tree`."""
    packages = sorted(job.input("repository").rglob("*.deb"), key=lambda path: path.name)
    tree = merge(unpack_all(packages), job.source_date_epoch)
    tree.write(job.output("tree"))


if __name__ == "__main__":
    main(program)
