"""The texts beside an image, in a folder or in a sample of a tar, and what they say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..samples import Caption
from ..text import is_unicode
from .caption_endings import CLASS_ENDING, CaptionChoice
from .caption_files import CaptionJson, caption_lines, decode_text, parse_caption_json
from .captions import CaptionValue, clean_captions, clean_name, has_letters

SECOND_IMAGE = "a second image of its sample, not used"
"""Reason of the problem for each further image of a sample."""

_SHA256_DIGITS = 64

Texts = Mapping[str, Callable[[], bytes]]
"""Functions by ending, in the order in which they are tried; each returns bytes or raises ValueError."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a text."""

    ending: str
    reason: str
    line: int | None = None
    """Number of the line, if the reason concerns one line."""


@dataclass(frozen=True, slots=True)
class Description:
    """What the texts of one image say."""

    captions: tuple[Caption, ...] = ()
    label: str | None = None
    source_sha256: bytes | None = None
    """As in Sample: img2dataset writes the hash of the download, which it then encoded again."""

    faults: tuple[Fault, ...] = ()
    num_letterless: Mapping[str, int] = field(default_factory=dict[str, int])
    """Lines, or whole texts, without a letter by ending. With the usual endings they are no captions."""


def describe_image(texts: Texts, choice: CaptionChoice, *, by_lines: bool = False) -> Description:
    """Return what the texts of an image say. What cannot be used is among the faults.

    With the usual endings the captions of a .json win, then those of the first text with any, then those
    that a .json has under names that are captions only if nothing better exists (a title). With chosen
    endings the captions of all texts count. A line, or a whole text, without a letter is a caption only with
    chosen endings: it is rather a label of a detector (YOLO).

    Args:
        texts: the texts that exist.
        choice: names of captions in a .json, and endings of captions.
        by_lines: each line of a text is a caption, instead of the whole text.
    """
    return _Reading(texts, choice, by_lines).run()


class _Reading:
    """The texts of one image, each read at most once and only where it is needed."""

    def __init__(self, texts: Texts, choice: CaptionChoice, by_lines: bool) -> None:
        self._texts, self._choice, self._by_lines = texts, choice, by_lines
        self._faults: list[Fault] = []
        self._num_letterless: dict[str, int] = {}

    def run(self) -> Description:
        jsons = {ending: self._json(ending) for ending in self._texts if _is_json(ending)}
        plain = [e for e in self._texts if e not in jsons and e != CLASS_ENDING]
        captions: tuple[Caption, ...] = ()
        if self._choice.caption_endings is not None:
            found = [
                jsons[e].captions if e in jsons else self._text(e)
                for e in self._texts
                if e != CLASS_ENDING
            ]
            captions = tuple(dict.fromkeys(caption for each in found for caption in each))
        else:
            captions = next((j.captions for j in jsons.values() if j.captions and j.is_sure), ())
            captions = captions or next(filter(None, map(self._text, plain)), ())
            captions = captions or next((j.captions for j in jsons.values() if j.captions), ())
        label = next((each.label for each in jsons.values() if each.label is not None), None)
        if CLASS_ENDING in self._texts:
            label = self._label() or label
        sums = map(_source_sha256, jsons.values())
        sha256 = next((each for each in sums if each is not None), None)
        return Description(captions, label, sha256, tuple(self._faults), self._num_letterless)

    def _json(self, ending: str) -> CaptionJson:
        try:
            text = decode_text(self._texts[ending]())
            found = parse_caption_json(text, self._choice.columns)
        except ValueError as error:
            self._faults.append(Fault(ending, str(error)))
            return CaptionJson()
        if not (
            found.is_foreign and len(self._texts) > 1
        ):  # other facts, beside a text with captions
            self._faults += [Fault(ending, reason) for reason in found.reasons]
        return found

    def _text(self, ending: str) -> tuple[Caption, ...]:
        try:
            data = self._texts[ending]()
            if self._by_lines:
                captions, bad_lines = caption_lines(decode_text(data))
                self._faults += [Fault(ending, "not UTF-8", number) for number in bad_lines]
            else:
                captions, reasons = clean_captions([CaptionValue(_whole_text(data))])
                self._faults += [Fault(ending, reason) for reason in reasons]
        except ValueError as error:
            self._faults.append(Fault(ending, str(error)))
            return ()
        if self._choice.caption_endings is not None:
            return captions
        kept = tuple(caption for caption in captions if has_letters(caption.text))
        if len(kept) < len(captions):
            self._num_letterless[ending] = len(captions) - len(kept)
        return kept

    def _label(self) -> str | None:
        try:
            return clean_name(_whole_text(self._texts[CLASS_ENDING]()), "the label")
        except ValueError as error:
            self._faults.append(Fault(CLASS_ENDING, str(error)))
            return None


def _is_json(ending: str) -> bool:
    return ending == "json" or ending.endswith(".json")


def _whole_text(data: bytes) -> str:
    text = decode_text(data)
    if not is_unicode(text):
        raise ValueError("not UTF-8; save it as UTF-8")
    return text


def _source_sha256(found: CaptionJson) -> bytes | None:
    digits = found.entry.get("sha256")
    if not isinstance(digits, str) or len(digits) != _SHA256_DIGITS:
        return None
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return None
