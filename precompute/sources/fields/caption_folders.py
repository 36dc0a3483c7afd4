"""Finding the texts of an image in a tree of folders: beside it, or in a folder of captions."""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ..image_files import IMAGE_ENDINGS
from ..listing import printable, scan_folder
from ..samples import Unused
from .caption_endings import CaptionChoice
from .texts_beside import IMAGE_FOLDERS, TEXT_FOLDERS, TextsBeside

_MAX_LISTED = 8
"""Folders of captions whose names are kept in memory."""


@dataclass(frozen=True, slots=True)
class TextFolder:
    """A folder of captions in a folder above, and which images its tree mirrors."""

    path: str
    """Relative to the root."""

    parent: str
    """The folder that contains it."""

    images: str | None
    """The only folder of images beside it, which its tree leaves out; None for none or several."""

    def folders_for(self, folder: str) -> Iterator[str]:
        """Yield the folders that may hold the captions of the images in a folder."""
        below = folder[len(self.parent) :].strip("/")
        yield f"{self.path}/{below}".rstrip("/")
        if self.images is not None and f"{below}/".startswith(f"{self.images}/"):
            yield f"{self.path}/{below[len(self.images) + 1 :]}".rstrip("/")


class TextFolders:
    """Finds texts in folders of captions, and counts texts that belong to no image, in one walk."""

    def __init__(self, root: str, choice: CaptionChoice) -> None:
        self._root, self._choice = root, choice
        self._listed: OrderedDict[str, TextsBeside] = OrderedDict()
        self._stray: dict[str, tuple[int, str]] = {}
        """Number of texts beside no image by folder, and the first of them."""

        self._num_used: dict[str, int] = {}
        """Number of texts that images of other folders used, by folder."""

    def seen(self, folder: str, folders: Collection[str]) -> Iterator[TextFolder]:
        """Yield the folders of captions among the sub-folders of a folder."""
        images = [name for name in folders if name.lower() in IMAGE_FOLDERS]
        for name in folders:
            if name.lower() in TEXT_FOLDERS:
                path = f"{folder}/{name}".lstrip("/")
                yield TextFolder(path, folder, images[0] if len(images) == 1 else None)

    def find(self, folder: str, image: str, above: Sequence[TextFolder]) -> list[tuple[str, str]]:
        """Return (ending, path) of the texts of an image; none if two folders have some."""
        found: dict[str, list[tuple[str, str]]] = {}
        for each in above:
            for place in each.folders_for(folder):
                if place != folder and place not in found:
                    texts = [
                        (e, f"{place}/{name}") for e, name in self._names(place).texts_of(image)
                    ]
                    found |= {place: texts} if texts else {}
        if len(found) != 1:
            return []
        [(place, texts)] = found.items()
        self._num_used[place] = self._num_used.get(place, 0) + len(texts)
        return texts

    def note_stray(self, folder: str, texts: TextsBeside) -> None:
        """Count the texts of a folder that no image in it used."""
        stray = sorted(texts.names - texts.used)
        if stray:
            self._stray[folder] = len(stray), f"{folder}/{stray[0]}".lstrip("/")

    def notes(self, num_images: int, num_captioned: int) -> Iterator[Unused]:
        """Yield a note on texts that belong to no image, if they may be missing captions."""
        strays = {
            folder: count - self._num_used.get(folder, 0)
            for folder, (count, _) in self._stray.items()
        }
        count = sum(strays.values())
        num_without = num_images - num_captioned
        if count and num_without and (num_captioned == 0 or count * 2 >= num_without):
            first = next(self._stray[folder][1] for folder, left in strays.items() if left)
            yield Unused(
                place=printable(f"{self._root}/{first}"),
                reason="texts that are named like no image beside them",
                count=count,
                remedy="put captions beside their images (x.txt for x.jpg), in a folder captions/ beside "
                "the images, or in a table",
            )

    def _names(self, folder: str) -> TextsBeside:
        texts = self._listed.get(folder)
        if texts is None:
            texts = self._listed[folder] = self._list(folder)
            if len(self._listed) > _MAX_LISTED:
                self._listed.popitem(last=False)
        self._listed.move_to_end(folder)
        return texts

    def _list(self, folder: str) -> TextsBeside:
        """Return the texts of a folder; none if it holds images or does not exist."""
        texts = TextsBeside(self._choice)
        try:
            with scan_folder(f"{self._root}/{folder}") as entries:
                for entry in entries:
                    if entry.name.lower().endswith(IMAGE_ENDINGS):
                        return TextsBeside(self._choice)
                    if texts.takes(entry.name) and not entry.name.startswith("."):
                        texts.add(entry.name)
        except OSError:
            return texts
        return texts
