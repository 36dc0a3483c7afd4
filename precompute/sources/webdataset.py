"""A WebDataset: samples in tar archives, which are read in place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from ...errors import SourceError
from ...store.io.location import Location, relative_to
from .base import CorpusPart, Source
from .fields.caption_endings import CaptionChoice
from .globs import root_of
from .image_files import IMAGE_ENDINGS, is_system_folder
from .img2dataset import holds_cache_or_nothing, unread_folders
from .img2dataset_records import RecordedFolder, ShardRecords
from .listing import exists, is_folder, is_readable, scan_folder, sizes_and_times
from .readers.tar_names import is_compressed_tar, is_tar, refuse_compressed, unpacked_name
from .samples import Problem, Sample
from .tar_samples import tar_samples

STORED_VIEWS = "views"
"""Name among the settings of a source whose views are stored in the corpus."""


@dataclass(frozen=True, slots=True)
class WebDatasetSource(Source):
    """Samples in one tar, in the tars of a folder, or in those that a pattern names."""

    kind: ClassVar[str] = "webdataset"

    files: tuple[Location, ...] = field(kw_only=True)
    """The tars in order. A missing one is a problem of the corpus."""

    unread_folders: tuple[str, ...] = field(default=(), kw_only=True)
    """Sub-folders beside the tars: nothing in them is read."""

    has_stored_views: bool = field(default=False, kw_only=True)
    """Whether views are the crops in the paug.json beside an image (crops.py)."""

    def _own_settings(self) -> dict[str, Any]:
        return {STORED_VIEWS: "paug.json"} if self.has_stored_views else {}

    @property
    def root(self) -> Location:
        """Folder that holds the files."""
        return root_of(self.location)

    def _own_parts(self) -> Iterator[CorpusPart]:
        """Yield one part per tar, in order."""
        root = self.root
        if self.unread_folders:
            yield CorpusPart("", partial(unread_folders, root, self.unread_folders))
        recorded: tuple[str, RecordedFolder] | None = None
        facts = sizes_and_times([str(path) for path in self.files])
        for path, size_and_time in zip(self.files, facts, strict=True):
            folder = str(path.parent)
            if recorded is None or recorded[0] != folder:
                recorded = folder, RecordedFolder(folder)
            records = recorded[1].find_records(path.stem)
            relative = relative_to(path, root)
            assert relative is not None
            state = records.fingerprint() if records else "none"
            # Size and time of a file stay the same when it becomes readable.
            state = f"{size_and_time} {is_readable(str(path))} {state}"
            yield CorpusPart(relative, partial(_scan, path, relative, records, self.choice), state)


def _scan(
    path: Location, relative: str, records: ShardRecords | None, choice: CaptionChoice
) -> Iterator[Sample | Problem]:
    if records is not None and records.unfinished is not None and exists(str(path)):
        yield records.skipped(str(path))
        return
    yield from tar_samples(path, relative, choice)
    if records is not None:
        yield from records.problems()


def find_webdataset(
    folder: Location, choice: CaptionChoice | None = None
) -> WebDatasetSource | None:
    """Return the source of a folder with tars and no images at its top, or None.

    Raises:
        SourceError: a tar is compressed and not also there unpacked, or the folder cannot be read.
    """
    tars: list[str] = []
    folders: list[str] = []
    try:
        with scan_folder(str(folder), with_nameless=True) as entries:
            for entry in entries:
                name = entry.name.lower()
                if name.startswith(".") or is_system_folder(name):
                    continue
                if name.endswith(IMAGE_ENDINGS):
                    return None
                if is_tar(name):
                    tars.append(entry.name)
                elif is_folder(entry) and not name.startswith("_"):  # img2dataset works in _tmp
                    folders.append(entry.name)
    except OSError as error:
        raise SourceError(f"{folder} cannot be read ({error.strerror})") from error
    if not tars:
        return None
    unread = tuple(n for n in sorted(folders) if not holds_cache_or_nothing(f"{folder}/{n}"))
    return make_webdataset(folder, [folder / n for n in sorted(tars)], unread, choice)


def make_webdataset(
    location: Location,
    files: Sequence[Location],
    unread_folders: tuple[str, ...] = (),
    choice: CaptionChoice | None = None,
) -> WebDatasetSource:
    """Return the source of these tars.

    Raises:
        SourceError: one is compressed and not also there unpacked.
    """
    names = set(files)
    for file in files:
        if is_compressed_tar(file.name) and file.with_name(unpacked_name(file.name)) not in names:
            refuse_compressed(file)
    tars = tuple(file for file in files if not is_compressed_tar(file.name))
    return WebDatasetSource(
        location, choice or CaptionChoice(), files=tars, unread_folders=unread_folders
    )
