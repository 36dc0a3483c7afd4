"""Scanning: the samples and problems of a corpus as frames, kept until the plan is committed.

A corpus of many files is scanned file by file (a CorpusPart, sources/base.py). The frames of a finished part
are kept in the cache's folder under a name that readers ignore, so that a plan that was killed resumes at the
part it was scanning. Parts in an object store are scanned several at a time, and other processes may scan
for the planner (shared_scan.py). Kept scans are not synced to disk: a torn or missing one is made again, with
the same result, because a scan is a pure function of its part.
"""

import contextlib
import hashlib
import io
import itertools
import json
import secrets
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import Any

import polars as pl
from upath import UPath

from ...errors import DiskFullError
from ...store.format import layout
from ...store.io.parallel import map_parallel
from ...store.io.storage import Storage
from ..sources import CorpusPart, Problem, Sample, Source, Unused

SCAN_ROWS = 65_536
"""Samples and problems in one frame."""

_SCAN_VERSION = 5
"""Increased when the frames of a part change: scans kept by an older version are made again."""

SCANNED = pl.Schema(
    {
        "key": pl.String(),
        "path": pl.String(),
        "member": pl.String(),
        "offset": pl.Int64(),
        "length": pl.Int64(),
        "row_group": pl.Int64(),
        "index": pl.Int64(),
        "label": pl.String(),
        "image_id": pl.String(),
        "source_sha256": pl.Binary(),
        "num_bytes": pl.Int64(),
        "mtime_ns": pl.Int64(),
        "place": pl.String(),
        "texts": pl.List(pl.String()),
        "langs": pl.List(pl.String()),
        "kinds": pl.List(pl.String()),
        "reason": pl.String(),
        "count": pl.Int64(),
        "remedy": pl.String(),
    }
)
"""Columns of a frame. A row is a sample; if ``reason`` is not null, a problem; if ``count`` is not null, a
count of unused items."""

_SCANNERS = 6
"""Parts of an object store scanned at a time, mostly waiting for the network. So many frames and two more
are in memory."""

_SHA256_BYTES = 32
_LAST, _MORE = b"\1", b"\0"


class Scanner:
    """Scans sources, and keeps the frames of their parts for a plan that resumes."""

    def __init__(self, files: Storage, *, keeps: bool) -> None:
        """Set the cache.

        Args:
            files: the cache's folder.
            keeps: write scans there; False only reads those that are kept.
        """
        self._files, self._keeps = files, keeps

    def frames(self, source: Source) -> Iterator[pl.DataFrame]:
        """Yield a source in order, in frames with the columns SCANNED; each part starts a new frame.

        Raises:
            SourceError: the source as a whole cannot be read.
        """
        if not isinstance(source.location, UPath):
            for part in source.parts():
                yield from self._part_frames(source, part)
            return
        begun = self._scan_ahead(source, source.parts())
        with contextlib.closing(begun):
            for part, frames in begun:
                yield from self._part_frames(source, part) if frames is None else frames

    def scan_slice(self, source: Source, first: int, step: int) -> Generator[None]:
        """Scan the parts ``first``, ``first + step``, ... for the planner; yield after each part.

        Raises:
            SourceError: the source as a whole, or a part, cannot be read.
        """
        own = itertools.islice(source.parts(), first, None, step)
        if not isinstance(source.location, UPath):  # limited by a core, not by the network
            for part in own:
                self._scan_one(source, part)
                yield
            return
        with contextlib.closing(self._scan_ahead(source, own)) as begun:
            for _ in begun:
                yield

    def clear(self) -> None:
        """Remove all kept scans, once their plan is committed."""
        names = filter(layout.is_kept_scan, self._files.names(layout.CATALOG))
        self._files.remove_all(f"{layout.CATALOG}/{name}" for name in names)

    def _part_frames(self, source: Source, part: CorpusPart) -> Iterator[pl.DataFrame]:
        if part.fingerprint is None:
            return _frames(part.scan())
        return self._kept_frames(part, _digest(source, part))

    def _scan_ahead(
        self, source: Source, parts: Iterable[CorpusPart]
    ) -> Generator[tuple[CorpusPart, Iterator[pl.DataFrame] | None]]:
        """Scan several parts at a time; yield each in order with its frames.

        The frames are None if they were kept before, or if the part is not scanned ahead.
        """
        return map_parallel(
            partial(self._scan_one, source),
            parts,
            num_threads=_SCANNERS,
            num_ahead=_SCANNERS + 2,
        )

    def _scan_one(self, source: Source, part: CorpusPart) -> Iterator[pl.DataFrame] | None:
        """Scan a part and keep its frames.

        If scans are not kept, scan only the first frame, and let the caller continue the scan, so that one
        frame of it is in memory.
        """
        if part.fingerprint is None:
            return None
        digest = _digest(source, part)
        if self._num_kept(digest):
            return None
        scanned = self._scan_and_keep(part, digest)
        first = next(scanned)
        if not self._keeps:
            return itertools.chain([first], scanned)
        return iter([first]) if sum(1 for _ in scanned) == 0 else None

    def _kept_frames(self, part: CorpusPart, digest: str) -> Iterator[pl.DataFrame]:
        num_kept = self._num_kept(digest)
        for number in range(num_kept):
            found = self._read(digest, number)
            if found is None:  # another process committed the plan meanwhile, and cleared it
                yield from itertools.islice(_frames(part.scan()), number, None)
                return
            yield found
        if num_kept == 0:
            yield from self._scan_and_keep(part, digest)

    def _scan_and_keep(self, part: CorpusPart, digest: str) -> Iterator[pl.DataFrame]:
        number, following = 0, None
        for frame in _frames(part.scan()):
            if following is not None:
                self._write(digest, number, following, _MORE)
                yield following
                number += 1
            following = frame
        if following is not None:
            self._write(digest, number, following, _LAST)
            yield following

    def _num_kept(self, digest: str) -> int:
        """Return the number of kept frames of a part that was scanned to its end, else 0."""
        for number in itertools.count():
            head = self._head(digest, number)
            if head is None:
                return 0
            if head == _LAST:
                return number + 1
        raise AssertionError

    def _head(self, digest: str, number: int) -> bytes | None:
        try:
            head = self._files.read_head(layout.kept_scan(digest, number), _SHA256_BYTES + 1)
            return head[_SHA256_BYTES:]
        except OSError:
            return None

    def _read(self, digest: str, number: int) -> pl.DataFrame | None:
        try:
            data = self._files.read(layout.kept_scan(digest, number))
        except OSError:
            return None
        body = memoryview(data)[_SHA256_BYTES:]
        if hashlib.sha256(body).digest() != data[:_SHA256_BYTES]:
            return None
        with contextlib.suppress(pl.exceptions.PolarsError, OSError):
            found = pl.read_ipc(io.BytesIO(body[1:]))
            return found if found.schema == SCANNED else None
        return None

    def _write(self, digest: str, number: int, frame: pl.DataFrame, mark: bytes) -> None:
        if not self._keeps:
            return
        sink = io.BytesIO()
        frame.write_ipc(sink, compression="lz4")
        body = mark + sink.getvalue()
        path = layout.kept_scan(digest, number)
        partial = f"{path.removesuffix('.partial')}.{secrets.token_hex(6)}.partial"
        try:
            self._files.write_unsynced(partial, hashlib.sha256(body).digest() + body)
        except DiskFullError:
            self._keeps = False  # the plan itself may still fit
            return
        self._files.rename(partial, path)


def _digest(source: Source, part: CorpusPart) -> str:
    facts = [
        _SCAN_VERSION,
        SCAN_ROWS,  # a frame that is damaged is found again by its number
        source.kind,
        source.settings,
        str(source.location),
        part.name,
        part.fingerprint,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _frames(items: Iterable[Sample | Problem]) -> Iterator[pl.DataFrame]:
    """Yield the items as frames; one empty frame if there are none."""
    lines: list[tuple[Any, ...]] = []
    num_frames = 0
    for item in items:
        if isinstance(item, Sample):
            item = _refuse_odd_names(item)
        lines.append(_problem_line(item) if isinstance(item, Problem) else _sample_line(item))
        if len(lines) == SCAN_ROWS:
            yield pl.DataFrame(lines, schema=SCANNED, orient="row")
            num_frames += 1
            lines = []
    if lines or num_frames == 0:
        yield pl.DataFrame(lines, schema=SCANNED, orient="row")


def _sample_line(sample: Sample) -> tuple[Any, ...]:
    return (
        sample.key,
        sample.path,
        sample.member,
        sample.offset,
        sample.length,
        sample.row_group,
        sample.index,
        sample.label,
        sample.image_id,
        sample.source_sha256,
        sample.num_bytes,
        sample.mtime_ns,
        _showable(sample.place),
        [caption.text for caption in sample.captions],
        [caption.lang for caption in sample.captions],
        [caption.kind for caption in sample.captions],
        None,
        None,
        None,
    )


def _problem_line(problem: Problem) -> tuple[Any, ...]:
    nothing = (None,) * 11
    key = None if problem.key is None else _showable(problem.key)
    place, reason = _showable(problem.place), _showable(problem.reason)
    count = remedy = None
    if isinstance(problem, Unused):
        count, remedy = problem.count, _showable(problem.remedy)
    return (key, *nothing, place, None, None, None, reason, count, remedy)


def _refuse_odd_names(sample: Sample) -> Sample | Problem:
    """Turn a sample whose names cannot be stored as UTF-8 into a problem."""
    try:
        f"{sample.key}{sample.path}{sample.member}{sample.label}".encode()
    except UnicodeEncodeError:
        reason = "its name is not valid UTF-8; rename the file"
        return Problem(place=sample.place, reason=reason)
    return sample


def _showable(text: str) -> str:
    """Return a text that a record can hold: names of folders and columns may be no UTF-8, or have NUL."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
