"""Reasons why bytes are not an image that Pillow opens."""

import re

_DAMAGED = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
)
"""First bytes of supported formats: the header is damaged or truncated."""

_UNREAD = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"\0\0\x01\0", "ICO"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (b"PK\x03\x04", "ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"Rar!", "RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip archive"),
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"
    ),
    b"crx ": "Canon raw (CR3)",
}
"""Brands of files that begin with a box ``ftyp``; all others are videos."""

_MIN_TEXT = 8  # characters: fewer may be text by chance


def why_no_picture(data: bytes) -> str:
    """Return why bytes that no reader of Pillow accepts are rejected."""
    start = data[:512]
    for begins, name in _DAMAGED:
        if start.startswith(begins):
            return f"damaged image: a {name} that is truncated, or whose header is damaged"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "damaged image: a WebP that is truncated, or whose header is damaged"
    if start[4:8] == b"ftyp":
        return _of_boxes(start)
    for begins, name in _UNREAD:
        if start.startswith(begins):
            return _unread(name)
    return f"not an image: {_of_text(start) or _of_bytes(data)}"


def _of_boxes(start: bytes) -> str:
    end = min(int.from_bytes(start[:4], "big"), len(start))
    brands = [start[8:12], *(start[at : at + 4] for at in range(16, end, 4))]
    named = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    # An AVIF has the brand mif1 too; its other brands tell them apart.
    if "AVIF" in named:
        return "damaged image: an AVIF that is truncated or damaged, or Pillow was built without its codec"
    return _unread(named[0] if named else "MP4 or QuickTime video")


def _unread(name: str) -> str:
    return f"{name}: unsupported format; convert it to JPEG, PNG or WebP"


def _of_text(start: bytes) -> str | None:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = text.lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the files with 'git lfs pull'"
    if b"/annex/objects/" in text:
        return "a git-annex pointer; fetch the files with 'git annex get'"
    if b"<svg" in lower:
        return "SVG, vector graphics; convert it to PNG"
    if lower.startswith((b"<!doctype html", b"<html", b"<head")):
        return "it is a web page"
    if lower.startswith(b"<?xml"):
        return "it is XML, such as a store's error message"
    if re.match(rb"\{\s*(\"|\})|\[\s*[\[{\"\]]", text):
        return "it is JSON"
    line = text.partition(b"\n")[0][:40].strip()
    if len(line) >= _MIN_TEXT and all(32 <= byte < 127 for byte in line):
        return f'it is text, "{line.decode()}"'
    return None


def _of_bytes(data: bytes) -> str:
    if not any(data):
        return f"{len(data):,} bytes, all of them zero"
    return f"it begins with {data[:8].hex(' ')}"
