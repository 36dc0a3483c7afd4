"""What stands in a table's column of images: a path, an object or a list around one, or a picture itself."""

import re
from typing import cast

from ..text import is_missing

PATH_NAMES = ("path", "file_name", "filename", "file")
"""Names that the path of an image has inside an object."""

_BYTES_NAME = "bytes"

# How pictures begin in base64: JPEG, PNG, GIF, WebP, BMP, TIFF, AVIF and HEIC.
_BASE64 = re.compile(
    r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkqA|TU0AK|AAAA)[A-Za-z0-9+/=_\s-]{60,}"
)
_LOOKED_AT = 512


def named_file(value: object) -> object:
    """Return the path that a value of an image column is or holds; null where it names no image.

    Raises:
        ValueError: it names several images, or is one itself; the message is a reason.
    """
    if isinstance(value, list):
        items = cast(list[object], value)
        if len(items) > 1:
            raise ValueError(
                f"the row names {len(items):,} images, expected one; write a row for each"
            )
        value = items[0] if items else None
    if isinstance(value, dict):
        entry = cast(dict[str, object], value)
        path = next((entry[name] for name in PATH_NAMES if entry.get(name)), None)
        if is_missing(path) and not is_missing(entry.get(_BYTES_NAME)):
            raise ValueError(_inside("bytes", entry[_BYTES_NAME]))
        value = path if path is not None or _BYTES_NAME in entry else value
    if isinstance(value, str) and (
        value.startswith("data:image/") or _BASE64.fullmatch(value[:_LOOKED_AT])
    ):
        raise ValueError(_inside("base64", value))
    return value


def _inside(kind: str, value: object) -> str:
    size = f" of {len(value):,} characters" if isinstance(value, str) else ""
    return (
        f"the image stands in the table as {kind}{size}, expected a path; write the pictures as files, or "
        "the table as Parquet with a binary column"
    )
