"""What stands beside an image of a WebDataset sample and says what it shows: .json, .txt, .cls.

The same three stand beside the images of img2dataset's format "files".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .base import Caption
from .caption_files import CaptionJson, decode_text, parse_caption_json
from .captions import clean_captions, clean_name, is_unicode

DESCRIBING = ("json", "txt", "cls")
"""Endings of what describes an image. A .txt is one caption, whole; a .json wins over it."""

SECOND_IMAGE = "a second image of its sample, not used"
"""Reason of the problem that each image of a sample is but for the one that is taken."""

_NO_JSON = CaptionJson(has_captions=False)
_SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Description:
    """What is said of one image."""

    captions: tuple[Caption, ...] = ()
    label: str | None = None
    source_sha256: bytes | None = None
    """As in Sample: img2dataset writes the sum of the download, which it then encoded anew."""

    reasons: tuple[tuple[str, str], ...] = ()
    """What is wrong: the ending it is wrong with, and why."""


def describe_image(texts: Mapping[str, Callable[[], bytes]]) -> Description:
    """Return what is said of an image; what cannot be used is among the reasons.

    Args:
        texts: by ending, of DESCRIBING; each reads the bytes, or raises ValueError with a reason.
    """
    told = _read_json(texts["json"]) if "json" in texts else _NO_JSON
    captions, label, reasons = told.captions, told.label, list[tuple[str, str]]()
    if not (told.is_foreign and len(texts) > 1):  # facts of another kind, beside a text of ours
        reasons += [("json", reason) for reason in told.reasons]
    if "txt" in texts and not told.has_captions:
        try:
            captions, unusable = clean_captions([(_whole_text(texts["txt"]()), None)])
            reasons += [("txt", reason) for reason in unusable]
        except ValueError as error:
            reasons.append(("txt", str(error)))
    if "cls" in texts:
        try:
            label = clean_name(_whole_text(texts["cls"]()), "the label") or label
        except ValueError as error:
            reasons.append(("cls", str(error)))
    return Description(captions, label, _source_sha256(told), tuple(reasons))


def _read_json(read: Callable[[], bytes]) -> CaptionJson:
    try:
        return parse_caption_json(decode_text(read()))
    except ValueError as error:
        return CaptionJson(reasons=(str(error),))


def _whole_text(data: bytes) -> str:
    text = decode_text(data)
    if not is_unicode(text):
        raise ValueError("not UTF-8; save it as UTF-8")
    return text


def _source_sha256(told: CaptionJson) -> bytes | None:
    digits = told.entry.get("sha256")
    if not isinstance(digits, str) or len(digits) != _SHA256_DIGITS:
        return None
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return None
