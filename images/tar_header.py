"""The 512-byte header before each member of a tar archive: name, kind and size.

precompute/sources/readers/tar.py walks a whole archive.
Source: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from dataclasses import dataclass

BLOCK = 512
"""Bytes of a header; the data of a member are padded to whole blocks."""

REGULAR_KINDS = (b"0", b"\0", b"7")
"""Type flags of regular files: POSIX, version 7, and "contiguous", which is read as regular."""


@dataclass(frozen=True, slots=True)
class TarHeader:
    """The fields of one header. A longer name or size may be in an extended header before it."""

    name: bytes
    """The stored bytes, prefix and name joined."""

    size: int
    """Bytes of the data of the member."""

    kind: bytes
    """The type flag, one byte."""


def parse_header(block: bytes) -> TarHeader | None:
    """Return the header in a block, or None if its checksum does not match."""
    if len(block) != BLOCK:
        return None
    recorded = _number(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * 0x20  # the checksum counts as spaces
    size = _number(block[124:136])
    if recorded not in (total, _signed(total, block)) or size is None:
        return None
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0":  # GNU's "ustar " has times in place of the prefix
        prefix = block[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return TarHeader(name, size, block[156:157])


def _signed(total: int, block: bytes) -> int:
    """Return the checksum of old programs, which added signed bytes; the same if all are ASCII."""
    if block.isascii():
        return total
    num_high = sum(byte > 127 for byte in block) - sum(byte > 127 for byte in block[148:156])
    return total - 256 * num_high


def _number(field: bytes) -> int | None:
    """Return the number in a field, in octal digits or base 256 (GNU), or None for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    if any(digit not in b"01234567" for digit in digits):
        return None
    return int(digits, 8)
