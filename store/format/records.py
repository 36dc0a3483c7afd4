"""Records: small JSON files with a checksum, which detects truncation and damage.

The checksum is the last field and covers the bytes of the file before it, so that a reader in any
language can check it without reproducing our JSON.
"""

import hashlib
import json
from typing import Any

from ...errors import DamagedCacheError, FormatVersionError

FORMAT_VERSION = 2
"""The version of other records that this release writes."""

INT8_VERSION = 3
"""The version of the record of a teacher with int8 targets, which no earlier release would read right."""

STORED_VIEWS_VERSION = 3
"""The version of the record of a generation with a source whose views are stored in the corpus: earlier
releases cannot plan that source again."""

PATCH_VERSION = 4
"""The version of the record of a teacher with patch targets: earlier releases would lose some."""

AUGMENTATION_VERSION = 5
"""The version of the record of a generation whose views are augmented: earlier releases would train on other
pixels than the teacher saw."""

READABLE_VERSIONS = (1, 2, INT8_VERSION, PATCH_VERSION, AUGMENTATION_VERSION)
"""The versions that it reads. Version 1 only lacks columns of the samples, which are null there."""

Record = dict[str, Any]

_CHECKSUM_MARK = b',\n "checksum": "'


def encode_record(fields: Record) -> bytes:
    """Return the bytes of a record: indented JSON with format_version first and the checksum last.

    A ``format_version`` in the fields is kept.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **fields}, indent=1)
    body = text.removesuffix("\n}").encode()
    return body + _CHECKSUM_MARK + sha256_hex(body).encode() + b'"\n}\n'


def decode_record(data: bytes, *, where: str) -> Record:
    """Return the fields of a record after checking its checksum.

    Raises:
        DamagedCacheError: the record is truncated or was changed.
        FormatVersionError: its format version is not supported.
    """
    try:
        fields = json.loads(data)
        found = fields.pop("checksum")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCacheError(
            f"{where} is not a complete record ({len(data)} bytes); it was truncated or overwritten"
        ) from error
    # Before the version, which a flipped bit may change: every version has this checksum.
    expected = sha256_hex(data.rpartition(_CHECKSUM_MARK)[0])
    if found != expected:
        raise DamagedCacheError(
            f"{where} has checksum {found}, its content has {expected}; it was changed after it was "
            "written"
        )
    version = fields.get("format_version")
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise FormatVersionError(
            f"{where} has format version {version}, this release reads versions "
            f"1 to {READABLE_VERSIONS[-1]}; install the siglip2-cache that wrote it"
        )
    return fields


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
