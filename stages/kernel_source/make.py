"""make in a kernel source tree, with everything fixed that a kernel takes from where and when it is built.

Documentation/kbuild/reproducible-builds.rst lists what that is.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stages.kernel_source.arch import Architecture
from stages.shared.job import Failure, progress, run

# kbuild's short form of a command: `  CC      fs/ext4/super.o`.
_STEP = re.compile(r"  [A-Z][A-Z0-9_-]*(?: \[M\])? +\S")
_PLANNED = re.compile(r"echo '  [A-Z]")
_ERROR = re.compile(r"error:|undefined reference|\*\*\*|: not found|[Kk]illed|No space left")
_MOST_ERRORS = 20
# Who and where is no fact of the kernel's content.
_BUILDER = "disk-image"


@dataclass(frozen=True, slots=True)
class Make:
    """`source` is the tree, `compiler` what CC and HOSTCC are, `cache` the compiler cache's environment."""

    source: Path
    architecture: Architecture
    source_date_epoch: int
    compiler: str = "gcc"
    cache: Mapping[str, str] | None = None

    def run(self, *targets: str, **variables: str) -> None:
        """Make `targets`, silently. Raises Failure with make's exit code."""
        run(
            [*self._argv("-s"), *targets],
            hint="the log shows what make said",
            cwd=self.source,
            env=self._environment(variables),
        )

    def build(self, *targets: str) -> None:
        """Make `targets` on all CPUs this process may use, telling the progress in commands.

        The log has what compilers say and not their command lines. Raises Failure with the first error; the
        errors end the log, however much was still running.
        """
        self.run("prepare")
        total = self._planned(*targets)
        errors: list[str] = []
        done = 0
        with subprocess.Popen(
            [*self._argv(), *targets],
            cwd=self.source,
            env=self._environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if _STEP.match(line):
                    done += 1
                    if done <= total and (done % 20 == 0 or done == total):
                        progress(done, total, "commands")
                    continue
                print(line, end="", flush=True)
                if _ERROR.search(line):
                    errors.append(line.strip())
        if process.returncode:
            print("\n".join(["", "errors:", *errors[:_MOST_ERRORS]]), flush=True)
            first = errors[0] if errors else "no error line"
            raise Failure(
                f"make {' '.join(targets)}: exit code {process.returncode}: {first}",
                "the log ends with the compilers' errors; look at the recipe's fragments and patches",
            )

    def _planned(self, *targets: str) -> int:
        """How many commands make would run. Two seconds, in a build of minutes."""
        planned = subprocess.run(
            [*self._argv("-n"), *targets],
            cwd=self.source,
            env=self._environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
        )
        return len(_PLANNED.findall(planned.stdout))

    def _argv(self, *flags: str) -> list[str]:
        jobs = len(os.sched_getaffinity(0))
        return ["make", f"-j{jobs}", *flags, f"CC={self.compiler}", f"HOSTCC={self.compiler}"]

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        prefix_map = f"-ffile-prefix-map={self.source}=/usr/src/linux"
        when = datetime.fromtimestamp(self.source_date_epoch, UTC)
        return {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C",
            "TZ": "UTC",
            "SOURCE_DATE_EPOCH": str(self.source_date_epoch),
            "ARCH": self.architecture.make,
            "KBUILD_BUILD_TIMESTAMP": when.strftime("%a %b %e %H:%M:%S UTC %Y"),
            "KBUILD_BUILD_USER": _BUILDER,
            "KBUILD_BUILD_HOST": _BUILDER,
            "KBUILD_BUILD_VERSION": "1",
            # Set, though empty: setlocalversion then asks no git.
            "LOCALVERSION": "",
            "KCFLAGS": prefix_map,
            "KAFLAGS": prefix_map,
            # depmod runs once more, where its failure is one.
            "DEPMOD": "true",
            "INSTALL_MOD_STRIP": "1",
            **(self.cache or {}),
            **variables,
        }
