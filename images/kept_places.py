"""Where the kept images of a cache are."""

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..store.format import layout
from ..store.format.kept_pixels import KeptPixels, member_name
from ..store.io.location import join
from .image import ImageRef
from .image_bytes import ImageLocation

_LACKS_PIXELS = (
    "its pixels are not kept; build with --retry-rejected, or train with --pixels corpus"
)
_NOWHERE = ImageLocation(path=Path())


def kept_places(
    kept: KeptPixels, rows_N: NDArray[np.int64], sha256_N: NDArray[np.uint8] | None
) -> pl.DataFrame:
    """Return where the kept images of some rows are: row, file (the unit), offset, length, sha256.

    Args:
        kept: the kept pixels.
        rows_N: (N,) rows.
        sha256_N: (N, 32) hashes of the images as a teacher saw them; None: no check.

    Returns:
        N lines in the order of the rows. All but ``row`` is null for an image that is not kept, or was
        kept from other bytes.
    """
    wanted = pl.DataFrame({"row": rows_N})
    is_same = pl.lit(True)
    if sha256_N is not None:
        hashes = pl.Series([each.tobytes() for each in sha256_N], dtype=pl.Binary)
        wanted = wanted.with_columns(hashes.alias("seen"))
        is_same = pl.col("source_sha256") == pl.col("seen")
    some = wanted.select("row").lazy()
    units = [
        kept.index(unit)
        .lazy()
        .join(some, on="row", how="semi")
        .with_columns(pl.lit(unit, pl.Int64).alias("file"))
        for unit in sorted(kept.units)
    ]
    found = wanted.lazy().join(pl.concat(units), on="row", how="left", maintain_order="left")
    columns = ("file", "offset", "length", "sha256")
    return found.select("row", *(pl.when(is_same).then(pl.col(name)) for name in columns)).collect()


def kept_refs(
    kept: KeptPixels, places: pl.DataFrame, size_N2: NDArray[np.int32] | None = None
) -> Iterator[ImageRef]:
    """Yield references without views to some lines of kept_places; with a fault where nothing is kept.

    Args:
        kept: the kept pixels.
        places: N lines.
        size_N2: (N, 2) width and height of the original of each, 0 where they are not known; None: of none.
    """
    tars = {unit: layout.pixels_tar(unit) for unit in places["file"].drop_nulls().unique()}
    paths = {unit: join(kept.files.root, tar) for unit, tar in tars.items()}
    columns = places.select("row", "file", "offset", "length", "sha256")
    sizes = repeat((0, 0)) if size_N2 is None else map(tuple, size_N2.tolist())
    for (row, unit, offset, length, sha256), full in zip(columns.iter_rows(), sizes, strict=False):
        if unit is None:
            yield ImageRef(row, _NOWHERE, (), fault=_LACKS_PIXELS)
            continue
        location = ImageLocation(
            path=paths[unit],
            member=member_name(row),
            offset=offset,
            length=length,
            file_bytes=kept.units[unit].files[tars[unit]]["num_bytes"],
        )
        yield ImageRef(row, location, (), sha256=sha256, full=full if full[0] else None)
