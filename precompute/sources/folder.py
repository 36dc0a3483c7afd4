"""A folder of images: captions beside each image, classes as sub-folders."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ...errors import SourceError
from ...store.io.parallel import map_parallel
from .base import CorpusPart, Source
from .fields.caption_files import read_bytes
from .fields.sidecars import Description, describe_image
from .fields.unused_texts import LetterlessTexts
from .folder_listing import UNREAD_TAR
from .folder_walk import FolderWalk, WalkedImage, WalkedTable
from .image_files import USUAL_ENDINGS
from .listing import SizeAndTime, is_remote, printable, size_and_time
from .samples import Problem, Sample, Unused
from .text import is_unicode

_MAX_SEEN = 3  # kinds of files named in the message about a folder without images


@dataclass(frozen=True, slots=True)
class FolderSource(Source):
    """Every image anywhere below a folder. Hidden names (``.x``) are skipped."""

    kind: ClassVar[str] = "folder"

    def fingerprint(self) -> str:
        """Return a hash that changes with the name, size or time of any image or caption file. Opens none."""
        digest = hashlib.sha256(b"folder\n")
        for entry in FolderWalk(self.root, self.choice).run():
            if isinstance(entry, Problem):
                continue
            texts = entry.texts if isinstance(entry, WalkedImage) else ()
            for name in (entry.path, *(path for _, path in texts)):
                num_bytes, mtime_ns = self._facts(entry, name)
                digest.update(os.fsencode(name) + f"\0{num_bytes} {mtime_ns}\n".encode())
        return digest.hexdigest()

    def _own_parts(self) -> Iterator[CorpusPart]:
        yield CorpusPart("", self._scan)

    def _scan(self) -> Iterator[Sample | Problem]:
        """Yield the images of a folder by name, then those of its sub-folders by name.

        Raises:
            SourceError: the folder cannot be read, or there is no image below it.
        """
        num_images = num_captioned = num_tars = 0
        seen: list[str] = []
        letterless = LetterlessTexts("lines of files")
        walk = FolderWalk(self.root, self.choice)
        for entry, texts in self._with_texts(walk):
            if isinstance(entry, Problem):
                num_tars += entry.reason == UNREAD_TAR
                if isinstance(entry, Unused) and len(seen) < _MAX_SEEN:
                    seen.append(f"{entry.count:,} {entry.reason}")
                yield entry
            elif isinstance(entry, WalkedImage):
                num_images += 1
                letterless.add(texts.num_letterless, partial(self._place_of, entry))
                for item in self._sample(entry, texts):
                    num_captioned += isinstance(item, Sample) and bool(item.captions)
                    yield item
        yield from letterless.notes()
        yield from walk.notes(num_images, num_captioned)
        if not num_images:
            tars = (
                f", or name its {num_tars:,} archives: '{self.root}/**/*.tar'" if num_tars else ""
            )
            raise SourceError(
                f"{self.root} holds no images; expected files ending in {', '.join(USUAL_ENDINGS)}"
                f"{tars}{'; seen: ' if seen else ''}{', '.join(seen)}"
            )

    def _with_texts(
        self, walk: FolderWalk
    ) -> Iterator[tuple[WalkedImage | WalkedTable | Problem, Description]]:
        """Yield what was found with the texts beside it; texts of objects are read in parallel."""
        if is_remote(str(self.root)):
            yield from map_parallel(self._describe, walk.run())
        else:
            yield from ((entry, self._describe(entry)) for entry in walk.run())

    def _describe(self, entry: WalkedImage | WalkedTable | Problem) -> Description:
        if not isinstance(entry, WalkedImage) or not entry.texts or not is_unicode(entry.path):
            return Description()
        texts = {ending: partial(read_bytes, f"{self.root}/{path}") for ending, path in entry.texts}
        return describe_image(texts, self.choice, by_lines=True)

    def _facts(self, entry: WalkedImage | WalkedTable, name: str) -> SizeAndTime:
        listed = entry.listed.get(name)
        return size_and_time(f"{self.root}/{name}") if listed is None else listed

    def _sample(self, entry: WalkedImage, found: Description) -> Iterator[Sample | Problem]:
        image = entry.path
        place = printable(f"{self.root}/{image}")
        if not is_unicode(image):
            yield Problem(place=place, reason="the file name is not UTF-8; rename it")
            return
        key = os.path.splitext(image)[0]
        row = entry.table.row_of(image) if entry.table else None
        captions = row.captions if row else ()
        if self.choice.caption_endings is not None and found.captions:
            captions = found.captions
        num_bytes, mtime_ns = self._facts(entry, image)
        yield Sample(
            key=key,
            path=image,
            captions=captions or found.captions,
            label=(row.label if row else None) or found.label or entry.label,
            num_bytes=num_bytes,
            mtime_ns=mtime_ns,
            place=place,
        )
        for fault in found.faults:
            where = self._place_of(entry, fault.ending)
            line = "" if fault.line is None else f" line {fault.line}"
            yield Problem(place=where + line, reason=fault.reason, key=key)

    def _place_of(self, entry: WalkedImage, ending: str) -> str:
        """Return where the text of an image with this ending is."""
        return printable(f"{self.root}/{dict(entry.texts)[ending]}")
