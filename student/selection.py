"""Which images of the train split a training uses: --select."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import SettingError


@dataclass(frozen=True, slots=True)
class Selection:
    """How images are selected."""

    kind: Literal["all", "keep", "keys", "learnability"] = "all"
    """all: every image. keep: those with the best captions by the teacher. keys: those of a list.
    learnability: in each step those of a larger batch that are drawn by learnability."""

    share: float = 1.0
    """Share of the captioned images that is kept, above 0 to 1."""

    file: Path | None = None
    """File of keys, one a line."""


def parse_selection(text: str) -> Selection:
    """Return what ``all``, ``keep=SHARE``, ``keys=FILE`` or ``learnability`` means.

    Raises:
        SettingError: it is none of them, or SHARE is not a number above 0 to 1.
    """
    kind, separator, value = text.partition("=")
    if text == "all" or text == "learnability":
        return Selection(text)
    if kind == "keys" and value:
        return Selection("keys", file=Path(value))
    if kind != "keep" or not separator:
        raise SettingError(
            f"select {text!r} is not one of all, keep=SHARE, keys=FILE, learnability"
        )
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise SettingError(f"select {text!r} needs a share above 0 to 1, such as keep=0.5")
    return Selection("keep", share=share)
