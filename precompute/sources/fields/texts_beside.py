"""Which texts of a folder belong to which of its images, by their names."""

import os
import unicodedata
from collections.abc import Iterator

from .caption_endings import CaptionChoice

TEXT_FOLDERS = frozenset(
    ("captions", "caption", "texts", "text", "txt", "txts", "prompts", "sentences", "descriptions")
)
"""Folders of captions, for the images beside them or for a folder of images beside them."""

IMAGE_FOLDERS = frozenset(
    ("images", "image", "imgs", "img", "photos", "pictures", "jpegimages", "jpg", "jpegs", "png")
)
"""Folders of images beside a folder of captions: ``captions/x.txt`` for ``images/x.jpg``."""


class TextsBeside:
    """The texts of one folder, by name; no file is opened."""

    def __init__(self, choice: CaptionChoice) -> None:
        self._choice = choice
        self._suffixes = tuple(f".{ending}" for ending in choice.endings)
        self._exact: dict[tuple[str, str], str] = {}
        """File name by name of the image without ending, and ending: ``dog.TXT`` for dog and txt."""

        self._composed: dict[tuple[str, str], str] = {}
        """The same for names with accents, which macOS writes in decomposed form."""

        self.names: set[str] = set()
        self.used: set[str] = set()

    def takes(self, name: str) -> bool:
        """Return whether a file has the ending of a caption."""
        return name.lower().endswith(self._suffixes)

    def add(self, name: str) -> None:
        """Add a file."""
        self.names.add(name)
        lower = name.lower()
        for ending in self._choice.endings:
            stem = name[: -len(ending) - 1]
            if not stem or not lower.endswith(f".{ending}"):
                continue
            # Of dog.TXT and dog.txt the second, in any order of listing.
            place = stem, ending
            self._exact[place] = max(name, self._exact.get(place, ""))
            if not stem.isascii():
                place = unicodedata.normalize("NFC", stem), ending
                self._composed[place] = max(name, self._composed.get(place, ""))

    def unused(self) -> Iterator[tuple[str, str]]:
        """Yield each text that texts_of has not returned, and its name without ending."""
        stem_of = {name: stem for (stem, _), name in self._exact.items()}
        for name in sorted(self.names - self.used):
            yield name, stem_of.get(name, os.path.splitext(name)[0])

    def texts_of(self, image: str) -> Iterator[tuple[str, str]]:
        """Yield (ending, file name) of each text of an image, in the order in which they are tried."""
        stem, image_ending = os.path.splitext(image)
        composed = stem if stem.isascii() else unicodedata.normalize("NFC", stem)
        for ending in self._choice.endings:
            name = self._exact.get((stem, ending)) or self._composed.get((composed, ending))
            if name is not None and self._choice.fits(ending, image_ending[1:].lower()):
                self.used.add(name)
                yield ending, name
