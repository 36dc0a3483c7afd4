"""The images below a folder, each with the texts and the table that may describe it."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ...errors import SourceError
from ...store.io.location import Location
from .fields.caption_endings import CaptionChoice
from .fields.caption_folders import TextFolder, TextFolders
from .fields.unused_texts import UnreadTexts
from .folder_listing import FolderListing, count_unread, list_folder, no_image
from .image_files import class_of
from .imagefolder import FolderTable, ImageRow
from .listing import SizeAndTime, is_remote, printable
from .samples import Problem, Unused

_FolderId = tuple[int, int]  # device, inode


@dataclass(frozen=True, slots=True)
class WalkedTable:
    """A table that describes the images of its folder and of those below."""

    path: str
    """Relative to the root."""

    table: FolderTable
    listed: Mapping[str, SizeAndTime]
    """Sizes and times, as of WalkedImage."""

    def row_of(self, image: str) -> ImageRow | None:
        """Return what the table says of an image, by its path relative to the root; None for nothing."""
        folder = os.path.dirname(self.path)
        return self.table.row_of(image[len(folder) + 1 :] if folder else image)


@dataclass(frozen=True, slots=True)
class WalkedImage:
    """An image that was found."""

    path: str
    """Relative to the root."""

    texts: tuple[tuple[str, str], ...] = ()
    """Ending and path of each text beside it, in the order in which they are tried."""

    label: str | None = None
    """Class that its folder names."""

    table: WalkedTable | None = None
    listed: Mapping[str, SizeAndTime] = field(default_factory=dict[str, SizeAndTime])
    """Sizes and times of these files, as listed by an object store."""


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to be listed, with what was found in the folders above it."""

    path: str
    """Relative to the root."""

    ids: tuple[_FolderId, ...] = ()
    table: WalkedTable | None = None
    text_folders: tuple[TextFolder, ...] = ()


class FolderWalk:
    """One walk through a tree of folders, one folder's listing in memory at a time."""

    def __init__(self, root: Location, choice: CaptionChoice) -> None:
        self._root, self._choice = root, choice
        self._texts = TextFolders(str(root), choice)
        self._unread = UnreadTexts("files")
        self._tables: list[FolderTable] = []
        self._top_folders: list[str] = []
        self._num_other_tables, self._first_other_table = 0, ""

    def run(self) -> Iterator[WalkedImage | WalkedTable | Problem]:
        """Yield the table of a folder, its images by name, then its sub-folders by name.

        Raises:
            SourceError: the root cannot be read.
        """
        pending = [_Folder("")]
        while pending:
            folder = pending.pop()
            path = f"{self._root}/{folder.path}" if folder.path else str(self._root)
            try:
                folder_id = _folder_id(path)
                if folder_id is not None and folder_id in folder.ids:
                    reason = "a link to a folder that holds it; not followed"
                    yield Problem(place=printable(path), reason=reason)
                    continue
                listing = list_folder(path, self._choice)
            except OSError as error:
                if not folder.path:
                    raise SourceError(f"{path} cannot be read ({error.strerror})") from error
                reason = f"the folder cannot be read ({error.strerror})"
                yield Problem(place=printable(path), reason=reason)
                continue
            yield from listing.all_problems()
            yield from self._enter(folder, listing, folder_id, pending)

    def notes(self, num_images: int, num_captioned: int) -> Iterator[Problem]:
        """Yield what is wrong with the tables, and texts that belong to no image."""
        for table in self._tables:
            yield from table.problems()
        if num_captioned == num_images:
            return
        yield from self._texts.notes(num_images, num_captioned)
        yield from self._unread.notes(otherwise=no_image)
        if self._num_other_tables and num_captioned == 0:
            yield Unused(
                place=printable(f"{self._root}/{self._first_other_table}"),
                reason="tables among the images, not read",
                count=self._num_other_tables,
                remedy="name the table as the source, or call it metadata.csv with a column file_name",
            )

    def _enter(
        self,
        folder: _Folder,
        listing: FolderListing,
        folder_id: _FolderId | None,
        pending: list[_Folder],
    ) -> Iterator[WalkedImage | WalkedTable]:
        prefix = f"{folder.path}/" if folder.path else ""
        self._top_folders = self._top_folders if prefix else listing.folders
        table = folder.table
        if listing.table is not None and listing.images + listing.folders:
            table = self._open_table(prefix, listing)
            yield table
        self._count_tables(prefix, listing)
        text_folders = (*folder.text_folders, *self._texts.seen(folder.path, listing.folders))
        without = set[str]()
        for image in listing.images:
            texts = [(ending, prefix + name) for ending, name in listing.texts.texts_of(image)]
            texts = texts or self._texts.find(folder.path, image, text_folders)
            if not texts:
                without.add(os.path.splitext(image)[0])
            yield WalkedImage(
                prefix + image,
                tuple(texts),
                class_of(prefix + image, self._top_folders),
                table,
                _facts_of(listing, prefix, [image, *(path for _, path in texts)]),
            )
        count_unread(listing, without, self._unread)
        self._texts.note_stray(folder.path, listing.texts)
        ids = folder.ids if folder_id is None else (*folder.ids, folder_id)
        below = (prefix + name for name in reversed(listing.folders))
        pending.extend(_Folder(path, ids, table, text_folders) for path in below)

    def _open_table(self, prefix: str, listing: FolderListing) -> WalkedTable:
        assert listing.table is not None
        path = prefix + listing.table
        table = FolderTable(self._root / path, self._choice.columns)
        self._tables.append(table)
        return WalkedTable(path, table, _facts_of(listing, prefix, [path]))

    def _count_tables(self, prefix: str, listing: FolderListing) -> None:
        others = [name for name in listing.tables if name != listing.table]
        if others and not self._num_other_tables:
            self._first_other_table = prefix + others[0]
        self._num_other_tables += len(others)


def _folder_id(path: str) -> _FolderId | None:
    """Return device and inode, equal for all links to a folder; None in a store, which has no links."""
    if is_remote(path):
        return None
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _facts_of(listing: FolderListing, prefix: str, names: list[str]) -> dict[str, SizeAndTime]:
    paths = [name if name.startswith(prefix) else prefix + name for name in names]
    facts = ((path, listing.facts.get(path.removeprefix(prefix))) for path in paths)
    return {path: found for path, found in facts if found is not None}
