"""Where a text is in an image: the cosine of the text to each cell of the teacher's patch targets.

A cell is embedded as if it were the only patch of an image: the pooling head of the teacher gets its hidden
state alone. So cells are in the space of texts, although the teacher was trained on whole images only.

Shape letters in this file: Q = queries, N = images of a query, C = cells of a view, E = embed_dim.
"""

import io
from collections.abc import Sequence
from dataclasses import replace

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..precompute.teacher.reload import LiveTeacher
from ..store.cache import Cache
from .queries import EmbeddedQuery
from .report import Group, Item

_COLOURS = "inferno"
_OPACITY = 0.6
_QUALITY = 85


def with_patch_cosines(
    cache: Cache,
    live: LiveTeacher,
    queries: Sequence[EmbeddedQuery],
    groups: Sequence[Group],
    *,
    view: int,
) -> list[Group]:
    """Return the groups of text queries with the cosines of their images' cells.

    Args:
        cache: the cache.
        live: its teacher.
        queries: the texts.
        groups: their neighbours, images.
        view: view of the images.

    Raises:
        SettingError: the teacher has no patch targets.
    """
    targets = cache.patch_targets(live.record.name)
    found: list[Group] = []
    for query, group in zip(queries, groups, strict=True):
        batch = targets.read([item.row or 0 for item in group.items], view)
        text_E = query.embedding_D.astype(np.float32)
        text_E /= np.linalg.norm(text_E)
        items: list[Item] = []
        for item, values_CP, grid_2 in zip(
            group.items, batch.values_VCP, batch.grids_V2, strict=True
        ):
            cells_CP = values_CP[: grid_2.prod()].astype(np.float32)
            cosine_C = live.embed_cells(cells_CP @ targets.basis) @ text_E
            items.append(replace(item, patch_cosines=cosine_C.reshape(grid_2)))
        found.append(replace(group, items=tuple(items)))
    return found


def range_of(items: Sequence[Item]) -> tuple[float, float]:
    """Return the least and the largest cosine of all cells of some items; (0, 1) without any."""
    cosines = [item.patch_cosines for item in items if item.patch_cosines is not None]
    if not cosines:
        return 0.0, 1.0
    return min(float(each.min()) for each in cosines), max(float(each.max()) for each in cosines)


def draw_over(
    picture: bytes, cosines: NDArray[np.float32], between: tuple[float, float], media_type: str
) -> bytes:
    """Return a picture under its heat map, in the same format.

    Args:
        picture: an encoded image.
        cosines: (rows, columns) of its cells.
        between: the cosines of the darkest and of the brightest colour.
        media_type: such as image/jpeg.
    """
    least, largest = between
    shares = np.clip((cosines - least) / max(largest - least, 1e-9), 0, 1)
    with Image.open(io.BytesIO(picture)) as image:
        shown = image.convert("RGB")
    heat = Image.fromarray(shares.astype(np.float32)).resize(shown.size, Image.Resampling.BILINEAR)
    colours = mpl.colormaps[_COLOURS](np.asarray(heat))[..., :3]
    over = Image.fromarray((255 * colours).astype(np.uint8))
    out = io.BytesIO()
    blended = Image.blend(shown.convert("L").convert("RGB"), over, _OPACITY)
    blended.save(out, media_type.removeprefix("image/"), quality=_QUALITY)
    return out.getvalue()
