"""Bring the locked files, check each, and write them as a repository that apt reads.

Where a file comes from is of no account: no place is trusted, and no file gets its name before its size
and sha256 are those of the lock. The places, in order: the store, the pools, the archives.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stages.mirror.bring import Bringer, Brought, Outcome
from stages.mirror.index import packages_index
from stages.mirror.locked import Locked
from stages.shared.job import Failure, Job, main

# Enough to hide the round trips of small files; more would look like an attack to an archive.
_THREADS = 6


def program(job: Job) -> None:
    """Write the output `repository`."""
    files = [Locked.parse(file) for file in job.params["files"]]
    transport = job.transport()
    repository = job.output("repository")
    bringer = Bringer(
        store=Path(transport["store"]),
        pools=[Path(pool) for pool in transport["pools"]],
        archives=list(transport["archives"]),
        partial=Path(transport["partial"]),
        total=sum(file.size for file in files),
    )
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_THREADS) as pool:
            brought = list(pool.map(lambda file: bringer.bring(file, repository / file.pool_path), files))
        _refuse(brought)
        (repository / "Packages").write_text(packages_index(files, repository), "utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise Failure(
                f"{error.filename or repository}: {error.strerror}",
                "make room (disk-image cache gc) or choose another --store; what was downloaded is kept",
                code="disk",
            ) from None
        raise
    finally:
        bringer.close()
    bringer.forget_downloads(files)


def _refuse(brought: Sequence[Brought]) -> None:
    """Raise the Failure that says most: wrong content before a place that can't be used, that before a
    file gone.
    """
    for outcome, hint in (
        (
            Outcome.MISMATCH,
            "the place that served it is damaged or lies; name another with --archive, or: disk-image lock",
        ),
        (
            Outcome.UNUSABLE,
            "run the same command again: finished downloads are kept; or name another place with --archive",
        ),
        (
            Outcome.GONE,
            "the archive has a newer version: disk-image lock, or give a pool that still has the file",
        ),
    ):
        hit = [each for each in brought if each.outcome is outcome]
        if hit:
            what = "; ".join(each.why for each in hit[:5]) + (
                f"; and {len(hit) - 5} more" if len(hit) > 5 else ""
            )
            raise Failure(what, hint, code=outcome.value, details=[each.file.name for each in hit])


if __name__ == "__main__":
    main(program)
