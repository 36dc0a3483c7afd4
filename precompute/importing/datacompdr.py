"""Apple's DataCompDR: tars with the embeddings of an image's crops and captions beside the image.

A sample KEY has an image, ``KEY.npz`` (or ``KEY.pth.gz`` in bfloat16) with ``image_emb`` (crops, D) and
``text_emb`` (captions, D), ``KEY.paug.json`` with the crops, ``KEY.txt`` and ``KEY.syn.json`` with the
captions in the order of text_emb: that of the web first, then the synthetic ones.

Source: hf_dataset_example.py of apple/ml-mobileclip; scripts/gen.py of apple/ml-mobileclip-dr, which
writes the synthetic captions as ``syn_text_emb``.

The teacher embedded no whole image: the target of view 0 is the mean of the crops' unit embeddings.
"""

import gzip
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import SourceError
from ...formatting import first_line
from ...images.image import DecodedBatch
from ...store.format.layout import Modality
from ...store.format.views import WHOLE_IMAGE, ViewBox, pixel_box
from ...store.io.location import Location
from ...store.io.range_file import open_ranges
from ..sources.crops import (
    ENDING,
    MAX_BYTES,
    Crop,
    first_num_crops,
    member_places,
    parse_crops,
    read_member,
)
from .embeddings import NO_EMBEDDING, Embeddings, FoundViews, combined
from .vectors import load_npz

_NPZ, _TORCH, _TEXT, _SYN = b"npz", b"pth.gz", b"txt", b"syn.json"
_ENDINGS = (_NPZ, _TORCH, ENDING, _TEXT, _SYN)
_MAX_MEMBER_BYTES = 1 << 26
_KEPT_MEMBERS = 64
"""Members in memory, 100 kB each: the captions of a sample follow each other."""

CAPTIONS = ("txt", "syn.json")
"""Endings of the captions of DataCompDR, and the column of the second."""

SYN_COLUMN = "syn_text"


class DataCompDR(Embeddings):
    """Embeddings in tars, beside the images."""

    kind: ClassVar[str] = "datacompdr"
    place: ClassVar = {
        "file": pl.Int32(),
        "ending": pl.String(),
        "offset": pl.Int64(),
        "size": pl.Int64(),
        "item": pl.Int64(),
        "crops_offset": pl.Int64(),
        "crops_size": pl.Int64(),
    }

    def __init__(self, location: Location, tars: Sequence[Location]) -> None:
        """Read the width of the first embedding.

        Raises:
            SourceError: there is none.
        """
        self._tars = tars
        self.num_changed = self.num_crops = 0
        self._current: tuple[int, BinaryIO] | None = None
        self._arrays = lru_cache(maxsize=_KEPT_MEMBERS)(self._read_arrays)
        try:
            super().__init__(location, self._find_width())
        except BaseException:
            self.close()
            raise

    def first_num_crops(self) -> int:
        """Return the number of crops of the first image that has some."""
        return first_num_crops(self._tars[0])

    def images(self) -> Iterator[pl.DataFrame]:
        """See Embeddings."""
        for file, members in self._members():
            lines: list[tuple[Any, ...]] = []
            for key, places in members.items():
                packed = _packed(places)
                if packed is not None:
                    crops = places.get(ENDING, (None, None))
                    lines.append((_text(key), 0, file, *packed, 0, *crops))
            yield self._frame(lines)

    def texts(self) -> Iterator[pl.DataFrame]:
        """See Embeddings."""
        for file, members in self._members():
            opened = self._opened(file)
            lines: list[tuple[Any, ...]] = []
            for places in members.values():
                packed = _packed(places)
                if packed is None:
                    continue
                for item, text in enumerate(_captions(opened, places)):
                    if text:
                        lines.append((text, 0, file, *packed, item, None, None))
            yield self._frame(lines)

    def vectors(self, modality: Modality, places: pl.DataFrame) -> NDArray[np.float32]:
        """See Embeddings; of images the mean of their crops."""
        found = np.full((len(places), self.embed_dim), np.nan, np.float32)
        columns = places.select("file", "ending", "offset", "size", "item").with_row_index("at")
        # In the order of the tars, of which one is open at a time.
        for at, *member, item in columns.sort("file", "offset", maintain_order=True).iter_rows():
            try:
                images_CD, texts_TD = self._arrays(*member)
            except ValueError:
                continue
            if modality == "image":
                found[at] = _mean(images_CD)
            elif item < len(texts_TD):
                found[at] = texts_TD[item]
        return found

    def views(self, places: pl.DataFrame, batch: DecodedBatch) -> FoundViews:
        """See Embeddings."""
        num_images, num_views = batch.pixels.shape[:2]
        found = FoundViews(np.full((num_images, num_views, self.embed_dim), np.nan, np.float32))
        missing = set(range(num_images))
        columns = places.select(
            "at", "file", "ending", "offset", "size", "crops_offset", "crops_size"
        )
        for at, file, ending, offset, size, *crops_place in columns.iter_rows():
            missing.discard(at)
            image = batch.images[at]
            if image.reason is not None:
                continue
            try:
                images_CD, _ = self._arrays(file, ending, offset, size)
                if num_views > 1:
                    crops = self._crops(file, crops_place)[: num_views - 1]
                    _check_views(batch.refs[at].boxes, crops, image.width, image.height)
                    if len(images_CD) < num_views - 1:
                        raise ValueError(
                            f"it has {len(images_CD)} embeddings of its {num_views - 1} crops"
                        )
                    self.num_crops += len(crops)
                    self.num_changed += sum(crop.is_changed for crop in crops)
                    found.values_BKD[at, 1:] = images_CD[: num_views - 1]
                found.values_BKD[at, 0] = _mean(images_CD)
            except ValueError as error:
                found.reasons[at] = str(error)
        found.reasons |= dict.fromkeys(missing, NO_EMBEDDING)
        return found

    def digest(self) -> str:
        """See Embeddings."""
        return combined(map(self._tar_digest, range(len(self._tars))))

    def note(self) -> str | None:
        """See Embeddings."""
        if not self.num_changed:
            return None
        return (
            f"{self.num_changed:,} of {self.num_crops:,} crops were also changed by RandAugment (colours, "
            "turns) before the teacher saw them; a view replays the crop only"
        )

    def _members(self) -> Iterator[tuple[int, dict[bytes, dict[bytes, tuple[int, int]]]]]:
        for file in range(len(self._tars)):
            yield file, member_places(self._opened(file), _ENDINGS)

    def _frame(self, lines: list[tuple[Any, ...]]) -> pl.DataFrame:
        schema = {"name": pl.String(), "view": pl.Int64(), **self.place}
        return pl.DataFrame(lines, schema=schema, orient="row")

    def _tar_digest(self, file: int) -> str:
        """Return the SHA-256 of the embeddings, crops and captions of a tar, without its images."""
        digest, opened = hashlib.sha256(), self._opened(file)
        for key, places in member_places(opened, _ENDINGS).items():
            for ending, place in sorted(places.items()):
                digest.update(b"%b.%b %d\n" % (key, ending, place[1]))
                digest.update(read_member(opened, place, place[1]))
        return digest.hexdigest()

    def _crops(self, file: int, place: list[Any]) -> list[Crop]:
        if place[0] is None:
            raise ValueError("it has no paug.json, the crops of its embeddings")
        return parse_crops(read_member(self._opened(file), (place[0], place[1]), MAX_BYTES))

    def close(self) -> None:
        """See Embeddings."""
        if self._current is not None:
            self._current[1].close()
            self._current = None

    def _opened(self, file: int) -> BinaryIO:
        """Return a tar; one is open at a time, since samples follow each other."""
        if self._current is None or self._current[0] != file:
            self.close()
            try:
                self._current = file, cast(BinaryIO, open_ranges(self._tars[file]))
            except OSError as error:
                raise SourceError(
                    f"{self._tars[file]} cannot be read ({error.strerror})"
                ) from error
        return self._current[1]

    def _read_arrays(
        self, file: int, ending: str, offset: int, size: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the embeddings of the crops (C, D) and captions (T, D) of a sample.

        Raises:
            ValueError: they cannot be read; the message is a reason.
        """
        found = self._load(file, ending, offset, size)
        images_CD = found.pop("image_emb")
        texts_TD = np.concatenate([images_CD[:0], *found.values()])  # ValueError: of another width
        if images_CD.shape[1] != self.embed_dim:
            raise ValueError(
                f"its embeddings have width {images_CD.shape[1]}, not {self.embed_dim}"
            )
        return images_CD, texts_TD

    def _load(
        self, file: int, ending: str, offset: int, size: int
    ) -> dict[str, NDArray[np.float32]]:
        data = read_member(self._opened(file), (offset, size), _MAX_MEMBER_BYTES)
        try:
            if ending == _TORCH.decode():
                arrays = _load_torch(data)
            else:
                arrays = load_npz(io.BytesIO(data), f"its {ending}", most_bytes=_MAX_MEMBER_BYTES)
        except SourceError as error:
            raise ValueError(str(error)) from None
        if "image_emb" not in arrays:
            raise ValueError(f"its {ending} has no image_emb")
        names = [name for name in ("image_emb", "text_emb", "syn_text_emb") if name in arrays]
        for name in names:
            if arrays[name].ndim != 2 or arrays[name].dtype.kind != "f" or not arrays[name].size:
                raise ValueError(f"{name} of its {ending} is not an array (rows, width) of floats")
        return {name: arrays[name].astype(np.float32) for name in names}

    def _find_width(self) -> int:
        for frame in self.images():
            for line in frame.iter_rows(named=True):
                try:
                    found = self._load(*(line[n] for n in ("file", "ending", "offset", "size")))
                    return found["image_emb"].shape[1]
                except ValueError:
                    continue
        raise SourceError(
            f"{self._tars[0]} has no KEY.npz or KEY.pth.gz with image_emb, as DataCompDR has"
        )


def _packed(places: dict[bytes, tuple[int, int]]) -> tuple[str, int, int] | None:
    """Return ending, offset and size of the embeddings of a sample."""
    ending = next((each for each in (_NPZ, _TORCH) if each in places), None)
    return None if ending is None else (ending.decode(), *places[ending])


def _captions(file: BinaryIO, places: dict[bytes, tuple[int, int]]) -> list[str]:
    """Return the captions of a sample in the order of text_emb; empty where one is missing."""
    captions = [""]
    try:
        if _TEXT in places:
            captions[0] = read_member(file, places[_TEXT], MAX_BYTES).decode().strip()
        if _SYN in places:
            found: Any = json.loads(read_member(file, places[_SYN], MAX_BYTES))
            captions += [str(text).strip() for text in found[SYN_COLUMN]]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # planning reports them
    return captions


def _load_torch(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the tensors of a .pth.gz as arrays; no code in it is run.

    Raises:
        ValueError: it is not a compressed dictionary of tensors; the message is a reason.
    """
    import torch

    try:
        with gzip.open(io.BytesIO(data)) as file:
            unpacked = file.read(_MAX_MEMBER_BYTES + 1)
        if len(unpacked) > _MAX_MEMBER_BYTES:
            raise ValueError(f"it unpacks to more than {_MAX_MEMBER_BYTES:,} bytes")
        found: Any = torch.load(io.BytesIO(unpacked), map_location="cpu", weights_only=True)
        return {
            name: torch.as_tensor(value).float().numpy()
            for name, value in found.items()
            if name in ("image_emb", "text_emb", "syn_text_emb")
        }
    except Exception as error:  # torch raises UnpicklingError, RuntimeError and more
        raise ValueError(f"its pth.gz holds no tensors ({first_line(error)[:100]})") from None


def _mean(rows_CD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the unit vectors of some crops, a unit vector."""
    norms = np.linalg.norm(rows_CD, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_D = (rows_CD / norms).mean(axis=0)
        return mean_D / np.linalg.norm(mean_D)


def _check_views(boxes: Sequence[ViewBox], crops: Sequence[Crop], width: int, height: int) -> None:
    """Check that the views of the cache are the crops that the teacher saw.

    Raises:
        ValueError: they are not; the message is a reason.
    """
    if len(crops) < len(boxes) - 1:
        raise ValueError(f"its paug.json has {len(crops)} of {len(boxes) - 1} crops")
    for box, crop in zip(boxes[1:], crops, strict=True):
        pixels = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        if pixel_box(box, width, height) != pixels or box.flip != crop.flip:
            what = "is turned by its EXIF data, or " if box == WHOLE_IMAGE else ""
            raise ValueError(
                f"it {what}has other views in the cache than the crops of its paug.json"
            )


def _text(key: bytes) -> str:
    return key.decode("utf-8", "replace")
