"""PNG images with texts or colour profiles that exceed the limits of Pillow."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_MAX_TEXT = 1 << 20
"""Limit for one text and for all that are kept: well below Pillow's limits of 1 MiB and 64 MiB."""

_FRAME = 12  # of a chunk: length, name and checksum


def without_large_texts(data: bytes) -> bytes:
    """Return a PNG without its colour profile and without texts beyond 1 MiB.

    Neither is used, except an orientation in an XMP text: small texts are kept. A compressed text is
    expanded to at most 1 MiB to find its size, so a decompression bomb does no harm.
    """
    kept, at, room = [data[: len(SIGNATURE)]], len(SIGNATURE), _MAX_TEXT
    while at < len(data):
        if at + _FRAME > len(data):
            kept.append(data[at:])
            break
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + length + _FRAME
        num_bytes = _text_bytes(name, data[at + 8 : at + 8 + length], room)
        if num_bytes <= room and name != b"iCCP":
            kept.append(data[at:end])
            room -= num_bytes
        at = end
    return b"".join(kept)


def _text_bytes(name: bytes, chunk: bytes, limit: int) -> int:
    """Return the size of the text in a chunk, or any number above the limit; 0 for no text."""
    if name not in (b"tEXt", b"zTXt", b"iTXt"):
        return 0
    _, _, rest = chunk.partition(b"\0")
    if name == b"tEXt" or (name == b"iTXt" and rest[:1] == b"\0"):
        return len(chunk)
    packed = rest[1:] if name == b"zTXt" else rest[2:].split(b"\0", 2)[-1]
    try:
        return len(zlib.decompressobj().decompress(packed, limit + 1))
    except zlib.error:
        return 0
