"""One header of a tar archive: the 512 bytes that stand before each member's data.

Only what tells a member's name, kind and size; walking a whole archive is precompute/sources/tar.py.
Source: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from dataclasses import dataclass

BLOCK = 512
"""Bytes of a header; a member's data are padded to whole blocks."""

REGULAR_KINDS = (b"0", b"\0", b"7")
"""Type flags of plain files: POSIX, version 7, and "contiguous", which all programs read as plain."""


@dataclass(frozen=True, slots=True)
class TarHeader:
    """What a header says by itself; a longer name or size may stand in a header before it."""

    name: bytes
    """As stored, prefix and name joined."""

    size: int
    """Bytes of the member's data."""

    kind: bytes
    """The type flag, one byte."""


def parse_header(block: bytes) -> TarHeader | None:
    """Return what a block says; None where it is no header (its checksum does not fit)."""
    if len(block) != BLOCK:
        return None
    recorded = _number(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * 0x20  # the checksum counts as spaces
    size = _number(block[124:136])
    if recorded not in (total, _signed(total, block)) or size is None:
        return None
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0":  # GNU's "ustar " keeps times where POSIX has the prefix
        prefix = block[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return TarHeader(name, size, block[156:157])


def _signed(total: int, block: bytes) -> int:
    """Return the sum as old programs made it, of signed bytes; the same where all are ASCII."""
    if block.isascii():
        return total
    num_high = sum(byte > 127 for byte in block) - sum(byte > 127 for byte in block[148:156])
    return total - 256 * num_high


def _number(field: bytes) -> int | None:
    """Return a field's number, octal digits or GNU's base 256; None where it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    if any(digit not in b"01234567" for digit in digits):
        return None
    return int(digits, 8)
