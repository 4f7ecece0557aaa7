"""The little of an ELF file that says what else it needs to run: elf(5), 64-bit little-endian."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from stages.shared.job import Failure

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB = 1, 5
_PROGRAM = struct.Struct("<IIQQQQQQ")  # type flags offset vaddr paddr filesz memsz align
_DYNAMIC = struct.Struct("<qQ")


@dataclass(frozen=True, slots=True)
class Needs:
    """The dynamic loader's path (empty for a library) and the names of the libraries, in the file's
    order.
    """

    interpreter: str
    libraries: tuple[str, ...]


def needs(content: bytes, name: str) -> Needs:
    """Read the program headers and the dynamic section. Raises Failure naming `name` for anything else."""
    try:
        if content[:6] != b"\x7fELF\x02\x01":
            raise ValueError("expected a 64-bit little-endian ELF file")
        headers = list(_programs(content))
        interpreter = "".join(_text(content, offset) for kind, offset, *_ in headers if kind == _PT_INTERP)
        return Needs(interpreter, tuple(_libraries(content, headers)))
    except (ValueError, struct.error) as error:
        raise Failure(
            f"{name}: not a program or library: {error}", "lock the recipe's packages again"
        ) from None


def _programs(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Type, offset, address and size of each program header."""
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    for index in range(count):
        kind, _, offset, address, _, length, _, _ = _PROGRAM.unpack_from(content, table + index * size)
        yield kind, offset, address, length


def _libraries(content: bytes, headers: list[tuple[int, int, int, int]]) -> Iterator[str]:
    for kind, offset, _, size in headers:
        if kind != _PT_DYNAMIC:
            continue
        entries = list(_DYNAMIC.iter_unpack(content[offset : offset + size - size % _DYNAMIC.size]))
        (strings,) = [value for tag, value in entries if tag == _DT_STRTAB]
        for tag, value in entries:
            if tag == _DT_NEEDED:
                yield _text(content, _offset(headers, strings + value))


def _offset(headers: list[tuple[int, int, int, int]], address: int) -> int:
    """Where in the file the byte at a virtual address is."""
    for kind, offset, start, size in headers:
        if kind == _PT_LOAD and start <= address < start + size:
            return offset + address - start
    raise ValueError(f"no segment holds address {address:#x}")


def _text(content: bytes, offset: int) -> str:
    return content[offset : content.index(b"\0", offset)].decode("ascii")
