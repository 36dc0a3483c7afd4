"""The catalog of the training corpus in memory: files of images, boxes of views, texts.

A batch looks up a thousand random rows; querying the Parquet tables for each would cost more than its
forward pass.

Shape letters in this file: N = images of the corpus, K = views of each, B = images asked for, V = views
of each that are wanted.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import DamagedCacheError
from ...images.catalog_refs import LOCATION_COLUMNS, PlannedFiles
from ...images.image import ImageRef
from ...images.kept_places import kept_places, kept_refs
from ...images.tar_header import BLOCK
from ...store.cache import Cache
from ...store.format.kept_pixels import KeptPixels
from ...store.format.views import WHOLE_IMAGE, ViewBox, view_box
from .corpus import Corpus, find_ascending
from .sampler import ReadGroups

_PART_BYTES = 8 << 20
"""Bytes of a tar that are read at once: some 80 photographs, so that 32 parts hold enough to mix."""

_OPEN_PARTS, _OPEN_ROW_GROUPS = 32, 8


class ImageLookup:
    """Files of the images of a corpus, and the boxes of their views.

    Takes about 70 bytes of memory an image, 17 a view (40 if it is augmented), and the names of files and
    members.
    """

    def __init__(self, cache: Cache, corpus: Corpus, kept: KeptPixels | None = None) -> None:
        """Read the catalog.

        Args:
            cache: the cache.
            corpus: the images.
            kept: kept pixels to read; None: read the corpus.

        Raises:
            DamagedCacheError: the catalog lacks images of the corpus, or views of them; or a table of
                kept pixels is damaged.
        """
        self._cache = cache
        self._rows_N = corpus.rows_N
        self._images = _PlannedImages(cache, corpus) if kept is None else _KeptImages(kept, corpus)
        self._group_N = _group_numbers(self._images.places)
        self._parts = _Parts(self._images.places, self._group_N)
        self._views = _read_views(cache, corpus)

    @property
    def groups(self) -> ReadGroups | None:
        """Which images are read together: a Parquet row group, or a part of a tar; None: no images are."""
        if (self._group_N < 0).all():
            return None
        has_rows = bool(self._images.places["row_group"].is_not_null().any())
        return ReadGroups(
            number_I=self._group_N,
            num_open=_OPEN_ROW_GROUPS if has_rows else _OPEN_PARTS,
            in_order=has_rows,
        )

    def refs(self, positions_B: NDArray[np.int64], views_BV: NDArray[np.int64]) -> list[ImageRef]:
        """Return references to images, with the boxes of V views of each, in the order asked."""
        boxes = self._boxes(positions_B, views_BV)
        parts = self._parts.ranges(self._group_N[positions_B])
        found = self._images.refs(positions_B)
        return [
            ref.with_views(box, part) for ref, box, part in zip(found, boxes, parts, strict=True)
        ]

    def keys(self, positions: list[int]) -> list[str]:
        """Return the keys of a few images, read from the catalog."""
        rows = self._rows_N[positions].tolist()
        samples = self._cache.samples().filter(pl.col("row").is_in(rows)).select("row", "key")
        by_row = dict(samples.collect().iter_rows())
        return [by_row[row] for row in rows]

    def _boxes(
        self, positions_B: NDArray[np.int64], views_BV: NDArray[np.int64]
    ) -> list[tuple[ViewBox, ...]]:
        if not self._views:
            return [(WHOLE_IMAGE,) * views_BV.shape[1]] * len(positions_B)
        at = (positions_B[:, None] * self._cache.num_views + views_BV).ravel()
        values = zip(*(column[at].tolist() for column in self._views), strict=True)
        boxes = map(view_box, values)
        return [tuple(islice(boxes, views_BV.shape[1])) for _ in positions_B]


def _group_numbers(places: pl.DataFrame) -> NDArray[np.int64]:
    """Return the number of each image's row group or part of a tar, -1 for one that is read alone, (N,)."""
    is_small = pl.col("length") <= _PART_BYTES
    part = pl.coalesce("row_group", pl.when(is_small).then(pl.col("offset") // _PART_BYTES))
    number = pl.col("file") * (part.max() + 1) + part
    return places.select(number.fill_null(-1).alias("group"))["group"].to_numpy()


class _Parts:
    """First byte and end of each part of a tar or other file of several images."""

    def __init__(self, places: pl.DataFrame, group_N: NDArray[np.int64]) -> None:
        header = pl.when(pl.col("member").is_not_null()).then(BLOCK).otherwise(0)
        ends = places.lazy().with_columns(pl.Series("group", group_N))
        parts = (
            ends.filter(pl.col("offset").is_not_null() & (pl.col("group") >= 0))
            .group_by("group")
            .agg(
                (pl.col("offset") - header).min().clip(0).alias("first"),
                (pl.col("offset") + pl.col("length")).max().alias("end"),
            )
            .sort("group")
            .collect()
        )
        self._groups = parts["group"].to_numpy()
        self._ranges = parts.select("first", "end").to_numpy()

    def ranges(self, group_B: NDArray[np.int64]) -> list[tuple[int, int] | None]:
        """Return the part of each group; None for a group that is none."""
        at_B, is_part_B = find_ascending(self._groups, group_B)
        return [
            tuple(self._ranges[at].tolist()) if is_part else None
            for at, is_part in zip(at_B, is_part_B, strict=True)
        ]


class _PlannedImages:
    """The images in the corpus."""

    def __init__(self, cache: Cache, corpus: Corpus) -> None:
        self._cache = cache
        wanted = pl.DataFrame({"row": corpus.rows_N}).lazy()
        samples = cache.samples().select("row", *LOCATION_COLUMNS)
        self.places = samples.join(wanted, on="row", how="semi").sort("row").collect()
        if self.places.height != len(corpus):
            raise DamagedCacheError(
                f"the catalog of {cache.root} has {self.places.height:,} of {len(corpus):,} images "
                "that have a target; run siglip2-cache verify"
            )
        used = self.places.lazy().select(pl.col("file").unique())
        self._files = cache.table("files").join(used, on="file", how="semi").sort("file").collect()

    def refs(self, positions_B: NDArray[np.int64]) -> Iterator[ImageRef]:
        """Yield references without views."""
        places = self.places[positions_B]
        numbers = places["file"].unique().sort().to_numpy()
        at = np.searchsorted(self._files["file"].to_numpy(), numbers)
        files = PlannedFiles(self._cache, self._files[at])
        for row, *place in places.iter_rows():
            yield ImageRef(row, files.locate(*place), ())


class _KeptImages:
    """The kept images in a cache."""

    def __init__(self, kept: KeptPixels, corpus: Corpus) -> None:
        self._kept, self._size_N2 = kept, corpus.size_N2
        self.places = kept_places(kept, corpus.rows_N, corpus.sha256_N).with_columns(
            pl.lit("").alias("member"), pl.lit(None, pl.Int64).alias("row_group")
        )

    def refs(self, positions_B: NDArray[np.int64]) -> Iterator[ImageRef]:
        """Yield references without views; with a fault where an image is not kept."""
        return kept_refs(self._kept, self.places[positions_B], self._size_N2[positions_B])


class TextLookup:
    """The texts that are captions in a corpus, in memory."""

    def __init__(self, cache: Cache, corpus: Corpus) -> None:
        """Read the catalog."""
        self._text_rows = corpus.text_rows
        wanted = pl.DataFrame({"text_row": self._text_rows}).lazy()
        texts = cache.texts().join(wanted, on="text_row", how="semi").sort("text_row")
        self._texts = texts.select("text").collect()["text"]

    def texts(self, text_rows_M: NDArray[np.int64]) -> list[str]:
        """Return texts in the order asked."""
        return self._texts.gather(np.searchsorted(self._text_rows, text_rows_M)).to_list()


def _read_views(cache: Cache, corpus: Corpus) -> list[NDArray[Any]]:
    """Return the columns of views, each (N * K,): boxes, and augmentation if any; [] with one view."""
    N, K = len(corpus), cache.num_views
    if K == 1:
        return []
    columns = cache.view_policy.columns
    wanted = pl.DataFrame({"row": corpus.rows_N}).lazy()
    views = cache.table("views").join(wanted, on="row", how="semi").sort("row", "view")
    views = views.select("view", *columns).collect()
    if not np.array_equal(views["view"].to_numpy(), np.tile(np.arange(K), N)):
        raise DamagedCacheError(
            f"the catalog of {cache.root} lacks views: each image should have {K}; run siglip2-cache verify"
        )
    return [views[name].to_numpy() for name in columns]
