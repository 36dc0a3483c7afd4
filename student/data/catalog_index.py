"""The catalog of the training corpus in memory: files of images, boxes of views, texts.

A batch looks up a thousand random rows; querying the Parquet tables for each would cost more than its
forward pass.

Shape letters in this file: N = images of the corpus, K = views of each, B = images asked for, V = views
of each that are wanted.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import DamagedCacheError
from ...images.catalog_refs import LOCATION_COLUMNS, PlannedFiles
from ...images.image import ImageRef
from ...store.cache import Cache
from ...store.format.views import WHOLE_IMAGE, ViewBox
from .corpus import Corpus


class ImageLookup:
    """Files of the images of a corpus, and the boxes of their views.

    Takes about 60 bytes of memory an image, 17 a view, and the names of files and members.
    """

    def __init__(self, cache: Cache, corpus: Corpus) -> None:
        """Read the catalog.

        Raises:
            DamagedCacheError: the catalog lacks images of the corpus, or views of them.
        """
        self._cache = cache
        self._rows_N = corpus.rows_N
        wanted = pl.DataFrame({"row": corpus.rows_N}).lazy()
        samples = cache.samples().select("row", *LOCATION_COLUMNS)
        self._places = samples.join(wanted, on="row", how="semi").sort("row").collect()
        if self._places.height != len(corpus):
            raise DamagedCacheError(
                f"the catalog of {cache.root} has {self._places.height:,} of {len(corpus):,} images "
                "that have a target; run siglip2-cache verify"
            )
        used = self._places.lazy().select(pl.col("file").unique())
        self._files = cache.table("files").join(used, on="file", how="semi").sort("file").collect()
        self._boxes_NK4, self._flips_NK = _read_boxes(cache, corpus)

    @property
    def row_groups(self) -> NDArray[np.int64] | None:
        """(N,) number of each image's Parquet row group, -1 outside of Parquet; None if all are outside."""
        group = pl.col("row_group")
        if self._places.select(group.is_null().all()).item():
            return None
        number = pl.col("file") * (group.max() + 1) + group
        return self._places.select(number.fill_null(-1).alias("group"))["group"].to_numpy()

    def refs(self, positions_B: NDArray[np.int64], views_BV: NDArray[np.int64]) -> list[ImageRef]:
        """Return references to images, with the boxes of V views of each, in the order asked."""
        places = self._places[positions_B]
        numbers = places["file"].unique().sort().to_numpy()
        at = np.searchsorted(self._files["file"].to_numpy(), numbers)
        files = PlannedFiles(self._cache, self._files[at])
        boxes = self._boxes(positions_B, views_BV)
        return [
            ImageRef(row, files.locate(*place), box)
            for (row, *place), box in zip(places.iter_rows(), boxes, strict=True)
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
        if self._boxes_NK4 is None:
            return [(WHOLE_IMAGE,) * views_BV.shape[1]] * len(positions_B)
        boxes_BV4 = self._boxes_NK4[positions_B[:, None], views_BV].tolist()
        flips_BV = self._flips_NK[positions_B[:, None], views_BV].tolist()
        return [
            tuple(ViewBox(*box, flip=flip) for box, flip in zip(boxes, flips, strict=True))
            for boxes, flips in zip(boxes_BV4, flips_BV, strict=True)
        ]


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


def _read_boxes(
    cache: Cache, corpus: Corpus
) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
    """Return (N, K, 4) top, left, height, width and (N, K) flips; no boxes with one view."""
    N, K = len(corpus), cache.num_views
    if K == 1:
        return None, np.empty((0, 0), np.bool_)
    wanted = pl.DataFrame({"row": corpus.rows_N}).lazy()
    views = cache.table("views").join(wanted, on="row", how="semi").sort("row", "view").collect()
    if not np.array_equal(views["view"].to_numpy(), np.tile(np.arange(K), N)):
        raise DamagedCacheError(
            f"the catalog of {cache.root} lacks views: each image should have {K}; run siglip2-cache verify"
        )
    boxes_NK4 = np.empty((N, K, 4), np.float32)
    for i, name in enumerate(("top", "left", "height", "width")):
        boxes_NK4[:, :, i] = views[name].to_numpy().reshape(N, K)
    return boxes_NK4, views["flip"].to_numpy().reshape(N, K)
