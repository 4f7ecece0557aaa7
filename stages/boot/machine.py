"""The virtual machine of each architecture, under TCG: no KVM, no privileges, no network, nothing of the
host.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.shared.job import Failure


@dataclass(frozen=True, slots=True)
class Machine:
    """QEMU's program and machine type, and the name that Linux gives to the machine's first serial port."""

    program: str
    kind: str
    console: str


MACHINES = {
    "amd64": Machine("qemu-system-x86_64", "q35", "ttyS0"),
    "arm64": Machine("qemu-system-aarch64", "virt", "ttyAMA0"),
}


def machine(arch: str) -> Machine:
    """The machine for a Debian architecture's name; Failure for one we have no machine for."""
    if arch not in MACHINES:
        raise Failure(
            f"no machine to boot {arch!r} in", f"boot an image of one of these: {', '.join(MACHINES)}"
        )
    return MACHINES[arch]


def command(
    machine: Machine, *, kernel: Path, initramfs: Path, command_line: str, disk: Path, memory_mib: int
) -> list[str]:
    """QEMU's argv: direct kernel boot, the disk read-only on virtio, the serial console on standard output.

    TCG is named rather than tried after KVM: where /dev/kvm opens but can't run a plain guest, QEMU doesn't
    fall back.
    """
    return [
        machine.program,
        *("-machine", machine.kind, "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", str(memory_mib)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"),
        *("-serial", "stdio"),
        *("-kernel", str(kernel), "-initrd", str(initramfs), "-append", command_line),
        *("-blockdev", f"driver=raw,node-name=disk,read-only=on,file.driver=file,file.filename={disk}"),
        # no vectors, no MSI-X: QEMU 10.0 has failed an assertion of its table's under load
        *("-device", "virtio-blk-pci,drive=disk,vectors=0"),
    ]
