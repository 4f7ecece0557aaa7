"""Migrates a database to a revision, of a later program's as well, and says what it did.

Run as a program: URL REVISION.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from platform_server.database import Database
from platform_server.migrations import run

LATER = "0999"


def with_a_later_revision() -> None:
    """Have this process know one more migration."""
    os.environ["DISK_IMAGE_TEST_NEWEST"] = run.newest()
    run.VERSIONS.append(Path(__file__).parent / "future")


if __name__ == "__main__":
    with_a_later_revision()
    database = Database(sys.argv[1])
    sys.stdout.write(f"{run.migrate(database, sys.argv[2])}\n")
    database.close()
