"""Crops that a corpus stores beside its images as ``paug.json``, as Apple's DataCompDR does.

Source: hf_dataset_example.py and training/dr/transforms.py of apple/ml-mobileclip: ``param_aug`` is a list
(or its JSON as text) with an entry for each augmented image: [top, left, height, width] of
RandomResizedCrop in pixels, a flag if it may be mirrored, and the operations of RandAugment as
[number, magnitude], or null.
"""

import io
import itertools
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import polars as pl
from PIL import Image

from ...errors import SourceError
from ...store.format.views import WHOLE_IMAGE, ViewBox
from ...store.io.location import Location, join
from ...store.io.range_file import open_ranges
from .readers.tar import TarFault, walk_tar
from .readers.tar_index import split_key

ENDING = b"paug.json"
MAX_BYTES = 1 << 22
_HEAD_BYTES = 1 << 16
_ORIENTATION = 0x0112
_LONGEST = 1 << 20

MemberPlaces = dict[bytes, dict[bytes, tuple[int, int]]]
"""Offset and size of members, by key and ending."""


@dataclass(frozen=True, slots=True)
class Crop:
    """One augmented image: a box in pixels, and whether more was done to it than a view can replay."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    is_changed: bool
    """Whether RandAugment changed its pixels."""


def parse_crops(data: bytes) -> list[Crop]:
    """Return the crops of an image from its paug.json.

    Raises:
        ValueError: it is something else; the message is a reason.
    """
    try:
        found: Any = json.loads(data)["param_aug"]
        entries: list[Any] = json.loads(found) if isinstance(found, str) else found
        return [_parse_crop(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise ValueError("its paug.json has no list param_aug of crops") from None


def _parse_crop(entry: list[Any]) -> Crop:
    top, left, height, width = (_pixels(each) for each in entry[0])
    if height == 0 or width == 0:
        raise ValueError
    flip = len(entry) > 1 and entry[1] is True
    has_flip = len(entry) > 1 and isinstance(entry[1], bool)
    operations: list[Any] = next(iter(entry[2 if has_flip else 1 :]), None) or []
    changes = [int(number) for number, _ in operations]
    return Crop(top, left, height, width, flip, any(changes))  # operation 0 is the identity


def _pixels(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _LONGEST:
        raise ValueError
    return value


def crop_boxes(crops: Sequence[Crop], width: int, height: int) -> list[ViewBox]:
    """Return crops as views of an image of so many pixels.

    Raises:
        ValueError: a crop reaches beyond the image; the message is a reason.
    """
    boxes: list[ViewBox] = []
    for number, crop in enumerate(crops):
        if crop.left + crop.width > width or crop.top + crop.height > height:
            raise ValueError(
                f"crop {number} of its paug.json reaches beyond its {width} x {height} pixels"
            )
        top, left = _float32(crop.top / height), _float32(crop.left / width)
        extent = _float32(crop.height / height), _float32(crop.width / width)
        boxes.append(ViewBox(top, left, *extent, crop.flip))
    return boxes


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


class StoredViews:
    """Views of samples in tars, whose samples may be asked for in several calls: each tar is walked once."""

    def __init__(self, root: Location) -> None:
        """Start with no tar read.

        Args:
            root: folder of the tars.
        """
        self._root = root
        self._path: str | None = None
        self._crops: MemberPlaces = {}
        """Of the tar at ``path``, the last one that was read."""

    def read(self, samples: pl.DataFrame, num_views: int) -> pl.DataFrame:
        """Return the views of samples, in order: row, view and box.

        View 0 is the whole image, the others are the crops in order. A sample without enough crops, or whose
        crops are not of it, has whole images instead.

        Args:
            samples: row, path, member, offset, length.
            num_views: views of each sample.
        """
        lines: list[tuple[Any, ...]] = []
        rows = samples.iter_rows(named=True)
        for path, group in itertools.groupby(rows, lambda line: line["path"]):
            with cast(BinaryIO, open_ranges(join(self._root, path))) as file:
                if path != self._path:
                    self._crops, self._path = member_places(file, (ENDING,)), path
                for line in group:
                    boxes = _boxes_of(file, line, self._crops, num_views)
                    lines += [
                        (line["row"], view, box.top, box.left, box.height, box.width, box.flip)
                        for view, box in enumerate(boxes)
                    ]
        schema = {
            "row": pl.Int64,
            "view": pl.Int16,
            **dict.fromkeys(("top", "left", "height", "width"), pl.Float32),
            "flip": pl.Boolean,
        }
        return pl.DataFrame(lines, schema=schema, orient="row")


def member_places(file: BinaryIO, endings: Sequence[bytes]) -> MemberPlaces:
    """Return offset and size of the members of a tar with some endings, by key and ending.

    The key is as WebDataset has it, without ``./`` at its beginning.
    """
    found: MemberPlaces = {}
    for member in walk_tar(file):
        if isinstance(member, TarFault):
            break  # planning reports it
        parts = split_key(member.name)
        if parts is not None and parts[1] in endings and member.kind == "file":
            places = found.setdefault(parts[0].removeprefix(b"./"), {})
            places.setdefault(parts[1], (member.offset, member.size))
    return found


def read_member(file: BinaryIO, place: tuple[int, int], most_bytes: int) -> bytes:
    """Return the bytes of a member.

    Raises:
        ValueError: it is larger than ``most_bytes``, or cut; the message is a reason.
    """
    offset, size = place
    if size > most_bytes:
        raise ValueError(f"a member of it has {size:,} bytes, at most {most_bytes:,} are read")
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise ValueError("a member of it is cut")
    return data


def _boxes_of(
    file: BinaryIO,
    line: dict[str, Any],
    places: MemberPlaces,
    num_views: int,
) -> list[ViewBox]:
    parts = split_key(line["member"].encode())
    place = places.get(parts[0].removeprefix(b"./"), {}).get(ENDING) if parts else None
    try:
        if place is None:
            raise ValueError
        crops = parse_crops(read_member(file, place, MAX_BYTES))[: num_views - 1]
        if len(crops) < num_views - 1:
            raise ValueError
        return [WHOLE_IMAGE, *crop_boxes(crops, *_size(file, line["offset"], line["length"]))]
    except ValueError:
        return [WHOLE_IMAGE] * num_views


def _size(file: BinaryIO, offset: int, length: int) -> tuple[int, int]:
    """Return (width, height) of an image whose pixels are stored upright.

    Raises:
        ValueError: it is not an image, or is turned by its EXIF data, which the crops do not know.
    """
    for num_bytes in (min(_HEAD_BYTES, length), length):
        file.seek(offset)
        try:
            with Image.open(io.BytesIO(file.read(num_bytes))) as image:
                if image.getexif().get(_ORIENTATION, 1) != 1:
                    break
                return image.size
        except Exception:  # what Pillow raises depends on the format; planning reports nothing here
            continue
    raise ValueError


def first_num_crops(file: Location) -> int:
    """Return the number of crops of the first image of a tar that has some.

    Raises:
        SourceError: none has.
    """
    try:
        with cast(BinaryIO, open_ranges(file)) as opened:
            for places in member_places(opened, (ENDING,)).values():
                return len(parse_crops(read_member(opened, places[ENDING], MAX_BYTES)))
    except OSError as error:
        raise SourceError(f"{file} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise SourceError(f"{file}: the first image: {error}") from None
    raise SourceError(f"{file} has no member KEY.paug.json, the crops of an image of DataCompDR")
