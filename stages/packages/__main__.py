"""Install exactly the locked packages into a new root and write it as a canonical tar.

The tree holds nothing of the machine it was made on and nothing of the moment: `clean` says what is left
out.
"""

from __future__ import annotations

import time
from pathlib import Path

from stages.packages.clean import clean, left_out
from stages.packages.install import install
from stages.packages.installed import check_installed
from stages.packages.repository import stored_repository
from stages.shared import canonical_tar
from stages.shared.job import Job, main

# The sandbox's /tmp is empty and in memory; dpkg's many small writes are far slower anywhere else.
_SCRATCH = Path("/tmp")


def program(job: Job) -> None:
    """Write the output `tree`."""
    packages = list(job.params["packages"])
    started = time.time()
    root = _SCRATCH / "root"
    repository = stored_repository(job.input("repository"), _SCRATCH / "repository")
    install(root, repository, job.params["suite"], job.params["arch"], packages)
    check_installed(root, packages)
    clean(root)
    canonical_tar.pack(
        root,
        job.output("tree"),
        job.source_date_epoch,
        exclude=left_out(root),
        # One second for file systems whose clock is coarser than time()'s.
        made_since=started - 1,
    )


if __name__ == "__main__":
    main(program)
