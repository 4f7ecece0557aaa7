"""What differs between architectures when a kernel is built: Documentation/kbuild/kbuild.rst, «ARCH»."""

from __future__ import annotations

from dataclasses import dataclass

from stages.shared.job import Failure


@dataclass(frozen=True, slots=True)
class Architecture:
    """`make` is the value of ARCH, `source` the folder below arch/, `target` the make target of the image
    that a boot loader takes, `image` its path in the source tree.
    """

    make: str
    source: str
    target: str
    image: str


_ARCHITECTURES = {
    "amd64": Architecture("x86_64", "x86", "bzImage", "arch/x86/boot/bzImage"),
    "arm64": Architecture("arm64", "arm64", "Image", "arch/arm64/boot/Image"),
}


def architecture(name: str) -> Architecture:
    """By Debian's name. Raises Failure for one that is not known here."""
    try:
        return _ARCHITECTURES[name]
    except KeyError:
        raise Failure(
            f"arch: expected one of {', '.join(sorted(_ARCHITECTURES))}, found {name!r}",
            "add the architecture to stages/kernel_source/arch.py",
        ) from None
