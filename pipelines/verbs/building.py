"""The verbs from a recipe to a booted image, and those about this machine."""

from __future__ import annotations

from pathlib import Path

from pipelines.verbs.arguments import Verbs, archive, building, locks, recipe, store, tools_lock, verb


def declare(verbs: Verbs) -> None:
    """lock, build, explain, boot, doctor, cache."""
    lock = verb(
        verbs,
        "lock",
        "resolve a recipe's packages and write its lock",
        "disk-image lock recipes/debian-minimal",
    )
    lock.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE", help="the recipe's folder")
    lock.add_argument(
        "--tools", action="store_true", help="lock the tools of all recipes (stages/tools.lock) instead"
    )
    lock.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a new lock would differ"
    )
    lock.add_argument(
        "--update", action="append", metavar="NAME", help="let only this package move; repeatable"
    )
    lock.add_argument(
        "--accept-expired",
        action="append",
        metavar="SUITE",
        help="take an extra suite of the tools from an index past its Valid-Until; its signature must hold",
    )
    archive(lock)

    build = verb(
        verbs,
        "build",
        "build a recipe's image as an OCI layout",
        "disk-image build recipes/debian-minimal --output out/debian-minimal",
    )
    recipe(build)
    build.add_argument("--output", type=Path, metavar="LAYOUT", help="where the OCI layout goes")
    build.add_argument(
        "--executor",
        choices=("local", "dagger"),
        default="local",
        help="what runs the stages: this machine, or a Dagger engine",
    )
    build.add_argument("--base", metavar="IMAGE", help="dagger: another bootstrap image (same digest)")
    build.add_argument(
        "--relock",
        action="store_true",
        help="lock beside the output when the committed lock can't be served any more",
    )
    build.add_argument("--target", metavar="STAGE", help="stop after this stage (else image)")
    build.add_argument(
        "--only", metavar="STAGE", help="run this stage anew, and what it needs; show its whole log"
    )
    build.add_argument(
        "--git-sha", metavar="SHA", help="the commit that is built, for the provenance (else the checkout's)"
    )
    locks(build)
    building(build)

    explain = verb(
        verbs,
        "explain",
        "say for each stage why it would run, naming the input that changed",
        "disk-image explain recipes/debian-minimal",
    )
    recipe(explain)
    locks(explain)
    store(explain)

    boot = verb(
        verbs,
        "boot",
        "boot an image in QEMU and check that its root is verified",
        "disk-image boot out/debian-minimal",
    )
    boot.add_argument("layout", type=Path, metavar="LAYOUT", help="an OCI layout that build wrote")
    boot.add_argument("--console", type=Path, metavar="FILE", help="keep the guest's serial console here")
    tools_lock(boot)
    building(boot)

    doctor = verb(verbs, "doctor", "check what this machine has and lacks", "disk-image doctor")
    doctor.add_argument("--trust", type=Path, metavar="DIR|FILE", help="also ask each service of this trust")
    store(doctor)

    cache = verb(verbs, "cache", "collect or check the store", "disk-image cache gc --max-age 14")
    cache.add_argument(
        "action", choices=("gc", "check"), help="gc: remove what was not used; check: read every entry"
    )
    cache.add_argument(
        "--max-age", type=float, metavar="DAYS", help="gc: remove results not used for so long (30)"
    )
    cache.add_argument(
        "--max-size", type=float, metavar="GIB", help="gc: then the least recently used until this fits"
    )
    cache.add_argument(
        "--repair", action="store_true", help="check: remove what is wrong, so that it is built anew"
    )
    store(cache)
