"""The samples of one tar archive, by WebDataset's rule: members that share a key are one sample.

The archive is indexed first, from its headers alone, then grouped: members of a sample need not follow
each other. Grouping a million members takes 115 MB (names of 13 bytes). Images are not read, only texts.

If an archive is cut or damaged, the last sample is left out: members of it may be missing, and a caption
cannot be added after it was planned. If only the end mark is missing, the sample is used, because some
writers never write one.
"""

import stat
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, cast

from upath import UPath

from ...errors import SourceError
from ...store.io.location import Location
from ...store.io.range_file import ReadAhead
from .fields.caption_endings import CLASS_ENDING, CaptionChoice
from .fields.caption_files import MAX_TEXT_BYTES
from .fields.sidecars import SECOND_IMAGE, describe_image
from .fields.unused_texts import HEAD_BYTES, LetterlessTexts, UnreadTexts
from .image_files import IMAGE_ENDINGS, USUAL_ENDINGS
from .listing import printable, size_and_time
from .problem_tally import ProblemTally
from .readers.tar import TarFault, TarMember, printable_name, walk_tar
from .readers.tar_index import TarIndex, split_key
from .readers.tar_names import refuse_compressed
from .samples import Problem, Sample

_IMAGES = tuple(ending[1:].encode() for ending in IMAGE_ENDINGS)

_DOTTED_IMAGE = (
    "an image with a dot in its name before the ending, where WebDataset ends the key: not used; "
    "rename it unless it is a mask or the like"
)

_SMALL_TEXT = 1 << 16
_KEPT_BYTES = 1 << 26
"""Bytes of texts kept while the headers of an archive in an object store are read, because they come in
the same requests. Further texts are read afterwards."""


def tar_samples(
    path: Location, relative: str, choice: CaptionChoice | None = None
) -> Iterator[Sample | Problem]:
    """Yield the samples of an archive in the order of their first members, and what is wrong.

    Args:
        path: the archive.
        relative: its path relative to the root, as in Sample.path.
        choice: which members are captions.

    Raises:
        SourceError: it is compressed, or reading it fails. A missing or damaged archive is a problem.
    """
    choice = choice or CaptionChoice()
    try:
        if isinstance(path, UPath):
            with ReadAhead(path) as file:
                archive = _Archive(path, relative, cast(BinaryIO, file), choice, keeps_texts=True)
                yield from archive.scan()
            return
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
            yield Problem(place=printable(str(path)), reason="not a regular file")
            return
        with path.open("rb", buffering=0) as file:
            yield from _Archive(path, relative, file, choice).scan()
    except FileNotFoundError:
        yield Problem(place=printable(str(path)), reason="no such file")
    except PermissionError as error:
        yield Problem(place=printable(str(path)), reason=f"it cannot be read ({error.strerror})")
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})") from error


class _Archive:
    """One archive that is being scanned."""

    def __init__(
        self,
        path: Location,
        relative: str,
        file: BinaryIO,
        choice: CaptionChoice,
        *,
        keeps_texts: bool = False,
    ) -> None:
        self._path, self._relative, self._file, self._choice = path, relative, file, choice
        texts = dict.fromkeys((*choice.endings, CLASS_ENDING))
        self._texts_of = dict(
            enumerate(texts, len(_IMAGES))
        )  # ending by role, in the order in which they are tried
        # Number of an ending: images first, preferred endings before others.
        self._role_of = {ending: role for role, ending in enumerate(_IMAGES)}
        self._role_of |= {ending.encode(): role for role, ending in self._texts_of.items()}
        self._place = printable(str(path))
        self._num_bytes, self._mtime_ns = size_and_time(str(path))
        self._tally = ProblemTally(self._place)
        self._index = TarIndex()
        self._texts: dict[int, bytes] = {}  # by member, until they are used
        self._kept_bytes = _KEPT_BYTES if keeps_texts else 0  # that may still be kept
        self._left_out: str | None = None  # key of the last sample, if it may be incomplete
        self._unread = UnreadTexts("members")
        self._letterless = LetterlessTexts("members")

    def scan(self) -> Iterator[Sample | Problem]:
        yield from self._build_index()
        num_images = num_captioned = 0
        for group in self._groups():
            for entry in self._sample(group):
                if isinstance(entry, Sample):
                    num_images += 1
                    num_captioned += bool(entry.captions)
                yield entry
        yield from self._tally.remaining()
        yield from self._letterless.notes()
        if num_captioned * 2 < num_images:
            yield from self._unread.notes()
        yield from self._closing_problems(num_images)

    def _groups(self) -> Iterator[list[int]]:
        """Yield the members of each sample: those with the same key in any Unicode form.

        Two images whose keys differ only in Unicode form are two samples, each with the members of its form.
        """
        index = self._index
        for group in index.groups():
            by_key: dict[bytes, list[int]] = {}
            if index.has_variants:
                for i in group:
                    by_key.setdefault(_key_of(index.name(i)), []).append(i)
            with_image = [
                k for k, ids in by_key.items() if any(index.roles[i] < len(_IMAGES) for i in ids)
            ]
            if len(with_image) > 1:
                yield from by_key.values()
            else:
                yield group

    def _build_index(self) -> Iterator[Problem]:
        index = self._index
        for member in walk_tar(self._file):
            if isinstance(member, TarFault):
                self._refuse_compressed()
                index.take_fault(member)
                return
            parts = split_key(member.name)
            index.last_key = parts[0] if parts else index.last_key
            role = self._role_of.get(parts[1]) if parts else None
            if parts is None or role is None:
                index.num_others += member.kind != "folder"
                self._note_unread(member, parts)
                if parts is not None and parts[1].endswith(_DOTTED):
                    yield from self._tally.add(
                        _DOTTED_IMAGE, self._problem(member.name, _DOTTED_IMAGE)
                    )
            elif member.kind != "file":
                index.skipped[member.kind] += 1
            elif not _is_utf8(member.name):
                reason = "the member's name is not UTF-8"
                yield from self._tally.add(reason, self._problem(member.name, reason))
            else:
                index.add(member, parts[0], role)
                if role >= len(_IMAGES) and member.size <= min(_SMALL_TEXT, self._kept_bytes):
                    self._kept_bytes -= member.size
                    self._texts[len(index) - 1] = self._read_text(len(index) - 1)

    def _note_unread(self, member: TarMember, parts: tuple[bytes, bytes] | None) -> None:
        """Count a member that may be a text beside an image."""
        is_text = parts is not None and _is_utf8(parts[1]) and not parts[1].endswith(_DOTTED)
        if parts is None or member.kind != "file" or not is_text:
            return

        def read_head() -> bytes:
            self._file.seek(member.offset)
            return self._file.read(min(member.size, HEAD_BYTES))

        self._unread.add(parts[1].decode(), self._place_of(member.name), read_head)

    def _sample(self, group: list[int]) -> Iterator[Sample | Problem]:
        index = self._index
        members: dict[int, int] = {}  # by role
        for i in group:
            if members.setdefault(index.roles[i], i) != i:
                reason = "its sample has such a member already; the first is taken"
                yield from self._tally.add(reason, self._problem(index.name(i), reason))
        role, image = min(members.items())
        name = index.name(image)
        parts = split_key(name)
        assert parts is not None
        key = parts[0].decode()
        if index.is_cut and index.is_last_key(parts[0]):
            self._left_out = key  # it would be recorded without its missing captions
            return
        if role >= len(_IMAGES):
            reason = "there is no image to it"
            yield from self._tally.add(reason, self._problem(name, reason, key))
            return
        for second in (members[r] for r in sorted(members) if role < r < len(_IMAGES)):
            problem = self._problem(index.name(second), SECOND_IMAGE, key)
            yield from self._tally.add(SECOND_IMAGE, problem)
        texts = {
            ending: partial(self._read_text, members[r])
            for r, ending in self._texts_of.items()
            if r in members and self._choice.fits(ending, parts[1].decode())
        }
        found = describe_image(texts, self._choice)

        def name_of(ending: str) -> bytes:
            return index.name(members[self._role_of[ending.encode()]])

        self._letterless.add(found.num_letterless, lambda ending: self._place_of(name_of(ending)))
        yield Sample(
            key=key,
            path=self._relative,
            captions=found.captions,
            label=found.label,
            member=name.decode(),
            offset=index.offsets[image],
            length=index.sizes[image],
            source_sha256=found.source_sha256,
            num_bytes=self._num_bytes,
            mtime_ns=self._mtime_ns,
            place=self._place_of(name),
        )
        for fault in found.faults:
            kind = f"its .{fault.ending} is unusable, or a part of it"
            yield from self._tally.add(
                kind, self._problem(name_of(fault.ending), fault.reason, key)
            )

    def _read_text(self, i: int) -> bytes:
        if i in self._texts:
            return self._texts.pop(i)
        size = self._index.sizes[i]
        if size > MAX_TEXT_BYTES:
            raise ValueError(f"larger than {MAX_TEXT_BYTES:,} bytes")
        self._file.seek(self._index.offsets[i])
        return self._file.read(size)

    def _closing_problems(self, num_images: int) -> Iterator[Problem]:
        """Yield what is wrong with the archive as a whole."""
        index = self._index
        skipped = index.skipped.items()
        if skipped:
            counts = " and ".join(f"{count:,} of kind {kind}" for kind, count in skipped)
            yield Problem(place=self._place, reason=f"members that are no files: {counts}")
        if index.fault is not None:
            reason = index.fault
            if self._left_out is not None:
                last = printable_name(self._left_out.encode())
                reason += f"; its last sample {last} may lack members and is left out"
            if num_images:
                reason += f"; {num_images:,} images before that are used"
            yield Problem(place=self._place, reason=reason, key=self._left_out)
        elif not num_images:
            yield Problem(place=self._place, reason=self._describe_lack())

    def _describe_lack(self) -> str:
        num_members = len(self._index) + self._index.num_others
        return (
            f"no image among its {num_members:,} members; expected KEY{', KEY'.join(USUAL_ENDINGS)}"
        )

    def _refuse_compressed(self) -> None:
        if len(self._index) == self._index.num_others == 0:
            self._file.seek(0)
            refuse_compressed(self._path, begins=self._file.read(8))

    def _problem(self, name: bytes, reason: str, key: str | None = None) -> Problem:
        return Problem(place=self._place_of(name), reason=reason, key=key)

    def _place_of(self, name: bytes) -> str:
        return f"{self._place} member {printable_name(name)}"


_DOTTED = tuple(b"." + ending for ending in _IMAGES)


def _key_of(name: bytes) -> bytes:
    parts = split_key(name)
    assert parts is not None
    return parts[0]


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
