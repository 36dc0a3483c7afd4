"""Fitting the map of patch targets on a sample of the corpus, before a teacher is added."""

import numpy as np

from ..errors import SettingError
from ..images.pixels import Decode
from ..siglip import PatchPooling
from ..store.cache import Cache
from ..store.format.catalog import read_part
from ..store.format.patch_map import PatchMap, fit_patch_map
from .distortion import embed_images
from .executor.row_targets import split_patches
from .teacher.embedder import Embedder
from .teacher.teacher import Teacher

_MOST_IMAGES = 512
"""At 7 x 7 cells they have 25,000 cells, twenty for each direction of a width of 1152."""

_SEED = 0


def fit_on_sample(
    cache: Cache, teacher: Teacher, *, grid: int, dim: int, batch_size: int, decode: Decode
) -> PatchMap:
    """Return the map of patch targets for whole images drawn from the first part of the catalog.

    Args:
        cache: the cache, planned.
        teacher: the teacher.
        grid: rows and columns of cells of a square view.
        dim: values of a cell.
        batch_size: images in one forward pass.
        decode: how images are decoded.

    Raises:
        SettingError: no image can be read.
    """
    rows = np.empty(0, np.int64)
    for part in cache.manifest.parts("samples")[:1]:
        rows = read_part("samples", cache.part_file(part))["row"].to_numpy()
    draw = np.random.default_rng(_SEED)
    rows_N = np.sort(draw.choice(rows, min(_MOST_IMAGES, len(rows)), replace=False))
    teacher.patches = PatchPooling(grid, None)
    embedder = Embedder(teacher, max(1, min(batch_size, len(rows_N))), 1)
    found_NR = embed_images(cache, rows_N, embedder, decode)
    teacher.patches = None
    found_NR = found_NR[np.isfinite(found_NR).all(axis=1)]
    if not len(found_NR):
        raise SettingError(
            f"patch targets need images to fit their map to, and none of {len(rows_N):,} images of "
            f"{cache.root} can be read; use --corpus-root OLD=NEW if the corpus moved"
        )
    cells_NCW, grids_N2 = split_patches(found_NR[:, teacher.embed_dim :], grid * grid)
    is_cell_NC = np.arange(grid * grid) < grids_N2.prod(axis=1)[:, None]
    return fit_patch_map(
        cells_NCW[is_cell_NC].astype(np.float32), grid=grid, dim=dim, num_images=len(found_NR)
    )
