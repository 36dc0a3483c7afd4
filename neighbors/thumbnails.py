"""Thumbnails of images of a report: the crops that the teacher saw, or why there are none."""

import contextlib
import io
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import polars as pl
from PIL import Image
from upath import UPath

from ..cores import num_cores
from ..errors import SettingError, StorageError
from ..formatting import first_line
from ..images.augment import augment
from ..images.catalog_refs import image_refs, stored_boxes
from ..images.image import ImageRef
from ..images.image_bytes import ImageLocation, read_image_bytes
from ..images.kept_places import kept_places, kept_refs
from ..images.parquet_cells import ReadError
from ..images.pixels import PixelError, cut_view, decode_for_views, sha256_of_pixels
from ..images.prefetch_parquet import prefetch_parquet
from ..images.prefetch_remote import prefetch_remote
from ..siglip import shows_on_white
from ..store.cache import Cache
from ..store.format.augmentation import Augmentation
from ..store.format.views import WHOLE_IMAGE, ViewBox
from ..store.io.parallel import REQUESTS, Threads

Picture = tuple[int, int] | Path
"""(row, view) of an image of a cache, or a file given by the user."""

State = Literal["sound", "changed", "rejected", "unreadable"]

MEDIA_TYPE = "image/webp"

_QUALITY = 75
_MAX_ASPECT = 64
_MAX_THREADS = 8  # each holds one whole picture: 0.5 GB for the largest that Pillow decodes
_TIMEOUT_S = 60.0  # for one picture: a disk may be unreachable, a decoder may hang
_READ_AHEAD_BYTES = 1 << 26
_NO_ROW = -1  # of a file given by the user

_Task = TypeVar("_Task")
_Done = TypeVar("_Done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A small picture, or the reason why there is none."""

    data: bytes = b""
    """WebP; empty without a picture."""

    width: int = 0
    height: int = 0

    state: State = "sound"
    """``sound``: the pixels that the teacher saw. Otherwise what is wrong."""

    reason: str = ""
    """The state in words; empty if sound."""


def make_thumbnails(
    cache: Cache, pictures: Iterable[Picture], *, teachers: Sequence[str], side: int
) -> dict[Picture, Thumbnail]:
    """Return a thumbnail of each picture; repeated pictures are read once.

    Every file is read once, every row group of a Parquet file in one pass; an image whose file cannot be read
    is taken from the kept pixels, if there are any. Once an object store does not respond or has no
    credentials, no further image is requested. Memory holds the thumbnails (about 5 KB each at 192 pixels)
    and one whole picture a thread.

    Args:
        cache: has the rows.
        pictures: pictures in any order, repeats allowed.
        teachers: teachers whose rejections and recorded hashes are checked.
        side: pixels of the longer side; a smaller picture keeps its size.

    Raises:
        SettingError: the cache lacks a teacher or a view.
        DamagedCacheError: the record of what a teacher saw is damaged.
        StorageError: the object store of the cache itself does not respond.
    """
    wanted = set(pictures)
    views: defaultdict[int, list[int]] = defaultdict(list)
    for picture in wanted:
        if not isinstance(picture, Path):
            views[picture[0]].append(_checked_view(cache, *picture))
    rejected = _read_rejected(cache, teachers, views)
    readable = sorted(views.keys() - rejected.keys())
    refs = sorted(image_refs(cache, readable), key=_reading_order) if readable else []
    files = sorted(picture for picture in wanted if isinstance(picture, Path))
    refs += [ImageRef(_NO_ROW, ImageLocation(path=file), (WHOLE_IMAGE,)) for file in files]
    seen = {name: _read_sha256(cache, name, readable) for name in teachers}
    on_white = any(shows_on_white(cache.teacher(name).identity) for name in teachers[:1])

    def make(ref: ImageRef) -> dict[Picture, Thumbnail]:
        if ref.row == _NO_ROW:
            [thumbnail] = _thumbnails(ref, ref.boxes, side, on_white)[0]
            return {Path(str(ref.location.path)): thumbnail}
        of_row = views[ref.row]
        boxes = [ref.boxes[view] for view in of_row]
        thumbnails, sha256 = _thumbnails(ref, boxes, side, on_white)
        names = [name for name in teachers if seen[name].get(ref.row, sha256) != sha256]
        if sha256 is not None and names:
            thumbnails = [_changed(thumbnail, names[0]) for thumbnail in thumbnails]
        return {(ref.row, view): made for view, made in zip(of_row, thumbnails, strict=True)}

    found: dict[Picture, Thumbnail] = {}
    for row, of_row in views.items():
        reason = rejected.get(
            row, f"row {row} is not in the catalog"
        )  # replaced below if it is found
        state: State = "rejected" if row in rejected else "unreadable"
        found |= {(row, view): Thumbnail(state=state, reason=reason) for view in of_row}

    def unmade(ref: ImageRef) -> dict[Picture, Thumbnail]:
        late = Thumbnail(state="unreadable", reason=f"took longer than {_TIMEOUT_S:g} s to read")
        if ref.row == _NO_ROW:
            return {Path(str(ref.location.path)): late}
        return {(ref.row, view): late for view in views[ref.row]}

    for made in _in_threads(make, _with_bytes(refs), unmade):
        found |= made
    lost = {row for row in readable if all(not found[row, view].data for view in views[row])}
    found |= _from_kept(cache, lost, views, next(iter(seen.values()), {}), side, on_white)
    return found


def _from_kept(
    cache: Cache,
    rows: Collection[int],
    views: Mapping[int, list[int]],
    seen: Mapping[int, bytes],
    side: int,
    on_white: bool,
) -> dict[Picture, Thumbnail]:
    """Return thumbnails from the kept pixels, of images whose files cannot be read.

    Args:
        cache: the cache, with kept pixels or without.
        rows: these images.
        views: their views, by row.
        seen: hash of the bytes that the teacher saw, by row.
        side: as make_thumbnails.
        on_white: whether transparent colours are shown on white.
    """
    wanted = sorted(row for row in rows if row in seen)
    kept = cache.kept_pixels() if wanted else None
    if kept is None or not kept.units:
        return {}
    sha256_N = np.stack([np.frombuffer(seen[row], np.uint8) for row in wanted])
    boxes = stored_boxes(cache, wanted)
    found: dict[Picture, Thumbnail] = {}
    for ref in kept_refs(kept, kept_places(kept, np.array(wanted), sha256_N)):
        every = boxes.get(ref.row, (WHOLE_IMAGE,))
        thumbnails, sha256 = _thumbnails(ref, [every[v] for v in views[ref.row]], side, on_white)
        if sha256 is not None and sha256 == ref.sha256:
            found |= {(ref.row, v): t for v, t in zip(views[ref.row], thumbnails, strict=True)}
    return found


def _checked_view(cache: Cache, row: int, view: int) -> int:
    if not 0 <= view < cache.num_views:
        raise SettingError(
            f"view {view} of row {row} is not in {cache.root}, which has views 0..{cache.num_views - 1}"
        )
    return view


def _reading_order(ref: ImageRef) -> tuple[str, int, int, int]:
    place = ref.location
    return str(place.path), place.row_group or 0, place.index or 0, place.offset or 0


def _read_rejected(cache: Cache, teachers: Sequence[str], rows: Iterable[int]) -> dict[int, str]:
    """Return for rejected rows the teacher and the reason, in words.

    Such a picture is not decoded again: it may be one that crashes a decoder.
    """
    found: dict[int, str] = {}
    for name in teachers:
        units = cache.commits(name).units_of("image")
        for row in rows:
            unit = units.get(row // cache.shard_rows)
            if unit is not None and row in unit.rejected:
                found.setdefault(row, f"rejected by {name}: {unit.rejected[row]}")
    return found


def _changed(thumbnail: Thumbnail, teacher: str) -> Thumbnail:
    also = f" and is unreadable now: {thumbnail.reason}" if thumbnail.reason else ""
    reason = f"the file changed since {teacher} saw it{also}"
    return replace(thumbnail, state="changed", reason=reason)


def _read_sha256(cache: Cache, teacher: str, rows: Sequence[int]) -> dict[int, bytes]:
    """Return the hash of the bytes that a teacher saw, by embedded row."""
    committed = cache.commits(teacher).units_of("image")
    units = sorted({row // cache.shard_rows for row in rows} & committed.keys())
    if not units:
        return {}
    is_wanted = pl.col("row").is_in(list(rows)) & pl.col("sha256").is_not_null()
    frames = (cache.seen(teacher, unit).filter(is_wanted) for unit in units)
    return {
        row: sha256 for frame in frames for row, sha256 in frame.select("row", "sha256").iter_rows()
    }


def _thumbnails(
    ref: ImageRef, boxes: Sequence[ViewBox], side: int, on_white: bool
) -> tuple[list[Thumbnail], bytes | None]:
    """Return thumbnails of views of one image, and the hash of its bytes; None if it cannot be read."""
    sha256: bytes | None = None
    try:
        if ref.fault is not None:
            raise ReadError(ref.fault)
        data = read_image_bytes(ref.location) if ref.data is None else ref.data
        sha256 = sha256_of_pixels(data)

        def view_size(height: int, width: int) -> tuple[int, int]:
            return _fitted(height, width, side)

        image, _ = decode_for_views(
            data, boxes, view_size=view_size, decode="scaled", on_white=on_white
        )
        views = [(cut_view(image, box), box.augmentation) for box in boxes]
        return [_encoded(view, side, operations) for view, operations in views], sha256
    except (ReadError, PixelError) as error:
        return [Thumbnail(state="unreadable", reason=str(error)) for _ in boxes], sha256


def _fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """Return a (height, width) within a square, with the same aspect up to _MAX_ASPECT."""
    longer = max(height, width)
    scale = min(1.0, side / longer)
    # Browsers stretch a picture that would be narrower than a pixel over the whole square.
    least = max(1, round(longer * scale / _MAX_ASPECT))
    return max(least, round(height * scale)), max(least, round(width * scale))


def _encoded(image: Image.Image, side: int, operations: Augmentation) -> Thumbnail:
    height, width = _fitted(image.height, image.width, side)
    small = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    small = augment(small, operations)
    sink = io.BytesIO()
    small.save(sink, "WEBP", quality=_QUALITY, method=2)  # half the time of 4, 3 % more bytes
    return Thumbnail(data=sink.getvalue(), width=width, height=height)


def _with_bytes(refs: Sequence[ImageRef]) -> Iterator[ImageRef]:
    """Yield the references; images in Parquet files or object stores come with their bytes or a fault.

    After the first image whose store cannot be used, all that are left in object stores have that fault.
    """
    rows = prefetch_parquet(((None, [ref]) for ref in refs), max_bytes=_READ_AHEAD_BYTES)
    read = prefetch_remote(rows, max_bytes=_READ_AHEAD_BYTES, max_batches=REQUESTS)
    num_read = 0
    try:
        with contextlib.closing(rows), contextlib.closing(read):
            for _, [ref] in read:
                num_read += 1
                yield ref
    except (StorageError, SettingError) as error:
        left = refs[num_read:]
        fault = first_line(error)
        for ref in left:
            if isinstance(ref.location.path, UPath):
                yield replace(ref, fault=fault)
        yield from _with_bytes([x for x in left if not isinstance(x.location.path, UPath)])


def _in_threads(
    make: Callable[[_Task], _Done], tasks: Iterable[_Task], late: Callable[[_Task], _Done]
) -> Iterator[_Done]:
    """Yield the result of each task, in order, a few tasks ahead; Pillow releases Python's lock.

    The result of a task that takes longer than _TIMEOUT_S is ``late(task)``; its thread is left behind.
    """
    num_threads = min(_MAX_THREADS, num_cores())
    waiting: deque[tuple[_Task, Future[_Done]]] = deque()
    pool = Threads(num_threads, "thumbnails")

    def first() -> _Done:
        nonlocal pool
        task, future = waiting.popleft()
        try:
            return future.result(_TIMEOUT_S)
        except TimeoutError:
            pool = Threads(num_threads, "thumbnails")  # all earlier threads may hang
            return late(task)

    # Decoding silences Pillow's warnings in its own thread, but Python has one list of filters for all
    # threads: threads that end in another order would restore each other's filters.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for task in tasks:
                waiting.append((task, pool.submit(lambda task=task: make(task))))
                if len(waiting) >= 2 * num_threads:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.close()
