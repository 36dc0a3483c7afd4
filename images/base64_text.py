"""Images in text tables, as base64."""

import base64
import binascii
import re

_HEAD_BYTES = 512

# How images begin in base64: JPEG, PNG, GIF, WebP, BMP, TIFF, AVIF and HEIC. JSON may write / as \/.
_HEAD = re.compile(
    rb"(?:\\?[/_]9j\\?[/_]|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkqA|TU0AK|AAAA)[A-Za-z0-9+/=_\s\\-]{60,}"
)
_ESCAPES = re.compile(rb"\\[nrt]|\s|\\(?=/)")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def is_base64_image(text: bytes) -> bool:
    """Return whether bytes are the base64 text of an image. No image file begins like one."""
    return _HEAD.fullmatch(text[:_HEAD_BYTES]) is not None


def decode_base64(text: bytes) -> bytes:
    """Return the bytes of a base64 text in CSV or JSON.

    Raises:
        ValueError: the text is not base64.
    """
    text = _ESCAPES.sub(b"", text).translate(_URL_SAFE).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({str(error).lower()})") from None
