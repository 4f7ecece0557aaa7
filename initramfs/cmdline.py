"""The root's digest, from the kernel's command line: the trust anchor of everything that is read later."""

from initramfs.refusal import Refused

_WORD = "composefs="
_HEX = frozenset("0123456789abcdef")


def root_digest(command_line: str) -> str:
    """The one `composefs=<64 lower case hex digits>` of /proc/cmdline: the fs-verity sha256 of the metadata
    image.

    Missing, malformed or twice is Refused: a root nobody named, or named ambiguously, must not run.
    """
    found = [word.removeprefix(_WORD) for word in command_line.split() if word.startswith(_WORD)]
    if len(found) != 1:
        raise Refused(
            f"expected one {_WORD}<64 hex digits> on the kernel's command line, found {len(found) or 'none'}"
        )
    if len(found[0]) != 64 or not _HEX.issuperset(found[0]):
        raise Refused(
            f"expected {_WORD}<64 hex digits> on the kernel's command line, found {_WORD}{found[0][:80]}"
        )
    return found[0]
