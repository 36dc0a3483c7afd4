"""Which files and members beside an image are its captions: by their usual endings, or as chosen."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ....errors import SettingError
from ..image_files import IMAGE_ENDINGS
from .columns import TableColumns

SETTING = "caption_endings"
"""Name of the chosen endings among a source's settings."""

_BEHIND_IMAGE = tuple(f"{ending[1:]}.txt" for ending in IMAGE_ENDINGS)
CLASS_ENDING = "cls"
"""Ending of a file that holds the class of an image."""

CAPTION_ENDINGS = ("json", "txt", "caption", "cap", "text", "caption.txt", *_BEHIND_IMAGE)
"""Endings that follow the name of an image without its own: ``dog.json`` and ``dog.jpg.txt`` of ``dog.jpg``.
The first file with a caption is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionChoice:
    """Which captions the user chose."""

    caption_endings: tuple[str, ...] | None = None
    """Endings from parse_endings; every file with one of them gives captions. None: CAPTION_ENDINGS."""

    columns: TableColumns = field(default_factory=TableColumns)
    """Names in a .json, and in the table of a folder (imagefolder.py), where they are not the usual ones."""

    has_class_files: bool = False
    """Whether ``.cls`` files beside images hold their classes."""

    @property
    def endings(self) -> tuple[str, ...]:
        """Endings of the texts that are read beside an image."""
        captions = CAPTION_ENDINGS if self.caption_endings is None else self.caption_endings
        return (*captions, CLASS_ENDING) if self.has_class_files else captions

    def fits(self, ending: str, image_ending: str) -> bool:
        """Return whether a text may belong to an image: ``dog.png.txt`` does not belong to ``dog.jpg``."""
        return ending not in _BEHIND_IMAGE or ending == f"{image_ending}.txt"

    def to_settings(self) -> dict[str, Any]:
        """Return what the user chose, as JSON values."""
        settings = self.columns.to_settings()
        return (
            settings
            if self.caption_endings is None
            else {SETTING: list(self.caption_endings), **settings}
        )


def parse_endings(given: Iterable[str]) -> tuple[str, ...]:
    """Return endings in lower case, without a dot before them, each once.

    Raises:
        SettingError: one is empty, holds a slash or a space, or is that of an image.
    """
    endings: dict[str, None] = {}
    for each in given:
        ending = each.strip().lower().lstrip("*").lstrip(".")
        if not ending or not ending.isprintable() or any(c in "/\\ " for c in ending):
            raise SettingError(
                f"caption ending {each!r} is invalid; use an ending such as .txt or .cap"
            )
        if f".{ending}" in IMAGE_ENDINGS:
            raise SettingError(f"caption ending {each!r} is that of an image, not of a text")
        endings[ending] = None
    return tuple(endings)
