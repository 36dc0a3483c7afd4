"""Records: small JSON files that carry their own checksum, so that a torn or damaged one is known.

The checksum is the last field, and covers the bytes of the file that stand before it: a reader in any
language checks it without having to write JSON the way we do.
"""

import hashlib
import json
from typing import Any

from ...errors import DamagedCacheError, FormatVersionError

FORMAT_VERSION = 2
"""What this program writes."""

READABLE_VERSIONS = (1, 2)
"""What it reads. Version 1 lacks only columns of the samples, all of them null there."""

Record = dict[str, Any]

_CHECKSUM_MARK = b',\n "checksum": "'


def encode_record(fields: Record) -> bytes:
    """Return a record's bytes: format_version first, its checksum last, indented for people."""
    text = json.dumps({"format_version": FORMAT_VERSION, **fields}, indent=1)
    body = text.removesuffix("\n}").encode()
    return body + _CHECKSUM_MARK + sha256_hex(body).encode() + b'"\n}\n'


def decode_record(data: bytes, *, where: str) -> Record:
    """Return a record's fields, checksum checked.

    Raises:
        DamagedCacheError: not JSON, or the checksum does not fit: torn, or changed since.
        FormatVersionError: written by another format version.
    """
    try:
        fields = json.loads(data)
        found = fields.pop("checksum")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCacheError(
            f"{where} is not a whole record ({len(data)} bytes); it was torn or overwritten"
        ) from error
    # Before the version, which one flipped bit changes too: every version has this checksum.
    expected = sha256_hex(data.rpartition(_CHECKSUM_MARK)[0])
    if found != expected:
        raise DamagedCacheError(
            f"{where} has checksum {found}, its content gives {expected}; it was changed since "
            "it was written"
        )
    version = fields.get("format_version")
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise FormatVersionError(
            f"{where} has format version {version}, this siglip2-cache reads versions "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; install the siglip2-cache that wrote it"
        )
    return fields


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
