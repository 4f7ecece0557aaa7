"""Build a kernel from source: unpack, patch, configure, compile; out come image, modules, .config, release.

Equal inputs give equal bytes, whatever the machine: the place is fixed, and so is all that make.py fixes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from stages.kernel_source import compiler_cache, fragments, kconfig, source
from stages.kernel_source.arch import architecture
from stages.kernel_source.make import Make
from stages.shared import canonical_tar
from stages.shared.canonical_tar import Entry, Kind
from stages.shared.job import Job, main, run

_SOURCE = Path("/tmp/linux")
_MODULES = Path("/tmp/modules")


def program(job: Job) -> None:
    """Write the outputs vmlinuz, modules, config and release."""
    target = architecture(job.params["arch"])
    asked = [
        fragments.parse(job.input(f"fragment-{index:04d}").read_text(), name)
        for index, name in enumerate(job.params["fragments"])
    ]
    source.unpack(job.input("repository"), _SOURCE)
    for index, name in enumerate(job.params["patches"]):
        source.patch(_SOURCE, job.input(f"patch-{index:04d}"), name)
    compiler, cache = compiler_cache.compiler(job.cache("ccache"), _SOURCE)
    make = Make(_SOURCE, target, job.source_date_epoch, compiler, cache)
    options = kconfig.configure(make, target, asked)
    modular = "MODULES" in options
    make.build(target.target, *(["modules"] if modular else []))
    release = (_SOURCE / "include/config/kernel.release").read_text().strip()
    built_in, modules = (sum(value == kind for value in options.values()) for kind in "ym")
    print(f"{release}: {built_in} options built in, {modules} as modules")
    _write_modules(make, job, release, modular)
    shutil.copyfile(_SOURCE / target.image, job.output("vmlinuz"))
    shutil.copyfile(_SOURCE / ".config", job.output("config"))
    job.output("release").write_text(f"{release}\n")


def _write_modules(make: Make, job: Job, release: str, modular: bool) -> None:
    if not modular:
        with (
            job.output("modules").open("wb") as stream,
            canonical_tar.Writer(stream, job.source_date_epoch) as tar,
        ):
            tar.add(Entry(".", Kind.DIRECTORY, 0o755, 0, 0, job.source_date_epoch))
        return
    # Kernel and depmod know lib/modules; in a merged-/usr tree that leads to usr/lib/modules.
    (_MODULES / "usr/lib").mkdir(parents=True)
    (_MODULES / "lib").symlink_to("usr/lib")
    make.run("modules_install", INSTALL_MOD_PATH=os.fspath(_MODULES))
    # A link to the place of the build.
    (_MODULES / "usr/lib/modules" / release / "build").unlink(missing_ok=True)
    run(
        [
            "depmod",
            "--basedir",
            os.fspath(_MODULES),
            "--errsyms",
            "--filesyms",
            str(_SOURCE / "System.map"),
            release,
        ],
        hint="a module uses a symbol that nothing exports: look at fragments and patches",
    )
    # Every file was made by this run: all have the image's one time.
    canonical_tar.pack(
        _MODULES,
        job.output("modules"),
        job.source_date_epoch,
        exclude=lambda path: path == "lib",
        made_since=0,
    )


if __name__ == "__main__":
    main(program)
