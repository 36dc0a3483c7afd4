"""Which texts of a folder belong to which of its images, by their names."""

import os
import unicodedata
from collections.abc import Iterator

from .caption_endings import CaptionChoice

TEXT_FOLDERS = frozenset(
    ("captions", "caption", "texts", "text", "txt", "txts", "prompts", "sentences", "descriptions")
)
"""Folders that hold the captions of the images beside them, or of a folder of images beside them."""

IMAGE_FOLDERS = frozenset(
    ("images", "image", "imgs", "img", "photos", "pictures", "jpegimages", "jpg", "jpegs", "png")
)
"""Folders of images that a folder of captions stands beside: ``captions/x.txt`` of ``images/x.jpg``."""


class TextsBeside:
    """The texts of one folder; nothing is opened."""

    def __init__(self, choice: CaptionChoice) -> None:
        self._choice = choice
        self._suffixes = tuple(f".{ending}" for ending in choice.endings)
        self._exact: dict[tuple[str, str], str] = {}
        """Name of a file by name of its image without ending, and ending: ``dog.TXT`` of dog and txt."""

        self._composed: dict[tuple[str, str], str] = {}
        """The same for names with accents, which macOS writes in another way."""

        self.names: set[str] = set()
        self.used: set[str] = set()

    def takes(self, name: str) -> bool:
        """Say whether a file's ending is one of captions."""
        return name.lower().endswith(self._suffixes)

    def add(self, name: str) -> None:
        """Take in a file."""
        self.names.add(name)
        lower = name.lower()
        for ending in self._choice.endings:
            stem = name[: -len(ending) - 1]
            if not stem or not lower.endswith(f".{ending}"):
                continue
            # Of dog.TXT and dog.txt the second, whichever the system names first.
            place = stem, ending
            self._exact[place] = max(name, self._exact.get(place, ""))
            if not stem.isascii():
                place = unicodedata.normalize("NFC", stem), ending
                self._composed[place] = max(name, self._composed.get(place, ""))

    def unused(self) -> Iterator[tuple[str, str]]:
        """Yield each text that belongs to none of the images asked for, and its name without ending."""
        stem_of = {name: stem for (stem, _), name in self._exact.items()}
        for name in sorted(self.names - self.used):
            yield name, stem_of.get(name, os.path.splitext(name)[0])

    def of(self, image: str) -> Iterator[tuple[str, str]]:
        """Yield (ending, file name) of each text of an image, in the order in which they are tried."""
        stem, image_ending = os.path.splitext(image)
        composed = stem if stem.isascii() else unicodedata.normalize("NFC", stem)
        for ending in self._choice.endings:
            name = self._exact.get((stem, ending)) or self._composed.get((composed, ending))
            if name is not None and self._choice.fits(ending, image_ending[1:].lower()):
                self.used.add(name)
                yield ending, name
