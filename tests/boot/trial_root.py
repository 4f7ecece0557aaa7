"""A stage of the boot tests: a small root out of a tools tree; its init is a script that tries the root out.

Inputs `tree` (a canonical tar); parameters `variant` (makes the root another one). Output `tree`.
The script prints `trial: <what> ok` or `trial: <what> FAILED: …` for each check, then `trial: done`.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

from stages.shared import canonical_tar
from stages.shared.canonical_tar import Entry, Kind
from stages.shared.job import Job, main

# Room enough that a copy of it shows in the memory that tmpfs takes.
LARGE = b"".join(hashlib.sha256(b"%d" % number).digest() * 128 for number in range(4096))
_LEFT_OUT = ("usr/share", "usr/lib/python3", "usr/lib/python3.13", "usr/libexec", "var/lib/dpkg")

SMALL = b"a small file of the root, more than 64 bytes long so that it is an object\n"

INIT = f"""\
#!/usr/bin/dash
export PATH=/usr/sbin:/usr/bin
exec > /dev/console 2>&1
sum={hashlib.sha256(LARGE).hexdigest()}
check() {{
    what=$1; expected=$2; found=$3
    if [ "$found" = "$expected" ]; then echo "trial: $what ok"
    else echo "trial: $what FAILED: expected $expected, found $found"; fi
}}
content() {{ sha256sum "$1" | cut -c 1-64; }}
taken() {{ sed -n 's/^Shmem: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; }}
cd /trial || exit 1
check mounts "1" "$(grep -c '^disk-image / overlay rw,.*metacopy=on.*verity=require' /proc/mounts)"
check layers-hidden "" "$(grep ' /layers' /proc/mounts)"
check initramfs-gone "" "$(ls -d /layers /sysroot /usr/lib/disk-image 2> /dev/null)"
check system-mounts "3" "$(grep -c -E ' /(proc|sys|dev) (proc|sysfs|devtmpfs) ' /proc/mounts)"
check pid-1 "1" "$$"
check signals-default "0000000000000000" "$(sed -n 's/^SigIgn:.//p' /proc/self/status)"
check environment "" "$(env | grep -v -E '^(PWD|PATH|OLDPWD|_|sum)=')"
check read "$sum" "$(content large)"
before=$(taken)
chown 7:8 large
chmod 0604 large
after=$(taken)
check chown-owner "7 8 604" "$(stat -c '%u %g %a' large)"
check chown-content "$sum" "$(content large)"
more=$((after - before))
check chown-copies-metadata-only "yes" "$([ $more -lt 1024 ] && echo yes || echo $more kB)"
echo more >> small
check append "{SMALL.decode().strip()}|more|" "$(tr '\\n' '|' < small)"
echo new > created
check create "new" "$(cat created)"
mv folder moved
check rename-folder "inside" "$(cat moved/file)"
ln twin twin2
check hard-link "2 $(content twin)" "$(stat -c %h twin) $(content twin2)"
rm removed
check unlink "" "$(ls removed 2> /dev/null)"
echo over > overwritten
check overwrite "over" "$(cat overwritten)"
check mode-with-setuid "4755" "$(stat -c %a setuid)"
echo "trial: done"
sync
while :; do sleep 60; done
"""
FILES = {
    "usr/sbin/init": (0o755, INIT.encode()),
    "trial/large": (0o644, LARGE),
    "trial/small": (0o644, SMALL),
    "trial/folder/file": (0o644, b"inside\n"),
    "trial/twin": (0o644, b"twin" * 50),
    "trial/removed": (0o644, b"removed" * 50),
    "trial/overwritten": (0o644, b"overwritten" * 50),
    "trial/setuid": (0o4755, b"setuid" * 50),
}


def program(job: Job) -> None:
    """Write the output `tree`."""
    entries: dict[str, tuple[Entry, bytes]] = {}
    with job.input("tree").open("rb") as stream:
        for entry, offset in canonical_tar.read(job.input("tree")):
            if entry.path.startswith(_LEFT_OUT) or (
                entry.kind is Kind.HARDLINK and entry.target not in entries
            ):
                continue
            stream.seek(offset)
            entries[entry.path] = (entry, stream.read(entry.size))
    files = {**FILES, "trial/variant": (0o644, str(job.params["variant"]).encode())}
    for path, (mode, content) in files.items():
        for folder in map(str, reversed(PurePosixPath(path).parents)):
            entries.setdefault(folder, (Entry(folder, Kind.DIRECTORY, 0o755, 0, 0, 0), b""))
        entries[path] = (Entry(path, Kind.FILE, mode, 0, 0, 0, len(content)), content)
    with (
        job.output("tree").open("wb") as output,
        canonical_tar.Writer(output, job.source_date_epoch) as writer,
    ):
        for _, (entry, content) in sorted(entries.items(), key=lambda item: item[0].encode()):
            writer.add(entry, content)


if __name__ == "__main__":
    main(program)
