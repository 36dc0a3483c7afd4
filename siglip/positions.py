"""Position embeddings of NaFlex, resized once for each grid of patches.

transformers 5.23 resizes them for every image of every batch in a Python loop, and reads each grid from the
device, which waits for all queued work. A corpus has few different grids (14 in 288 photographs of COCO),
so each is resized once and kept.

Shape letters in this file: B = images, N = patches, D = width.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_NUM_ROWS = 1 << 16
"""Rows kept, 256 grids of 256 patches: 300 MB for an SO400M in float32, half of that in bfloat16."""


class GridPositions:
    """Replaces ``Siglip2VisionEmbeddings.resize_positional_embeddings``, with equal values.

    Each grid of a batch is resized once; gradients flow. Spatial shapes must be on the host.
    """

    def __init__(self, resize: Any) -> None:
        """Call ``resize``, the replaced method, for one grid at a time.

        Args:
            resize: (embeddings of shape (height, width, D), shapes (B, 2), N) -> (B, N, D).
        """
        self._resize = resize

    def __call__(
        self, positional_embeddings: "Tensor", spatial_shapes: "Tensor", max_length: int
    ) -> "Tensor":
        """Return (B, max_length, D), padded with the first row of each image, as in transformers."""
        import torch

        grids = [(height, width) for height, width in spatial_shapes.tolist()]
        padded: dict[tuple[int, int], Tensor] = {}
        for grid in dict.fromkeys(grids):
            rows_ND = self._rows(positional_embeddings, grid)
            missing = max_length - len(rows_ND)
            padded[grid] = torch.cat([rows_ND, rows_ND[:1].expand(missing, -1)])
        return torch.stack([padded[grid] for grid in grids])

    def _rows(self, positional_embeddings: "Tensor", grid: tuple[int, int]) -> "Tensor":
        import torch

        [rows_ND] = self._resize(positional_embeddings, torch.tensor([grid]), grid[0] * grid[1])
        return rows_ND


class KeptPositions(GridPositions):
    """Resizes each grid once for all batches, for a model whose weights do not change."""

    def __init__(self, resize: Any, *, largest_num_rows: int = _LARGEST_NUM_ROWS) -> None:
        """Keep at most ``largest_num_rows`` rows of all grids, the most recently used ones."""
        super().__init__(resize)
        self._largest_num_rows = largest_num_rows
        self._kept: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._num_rows = 0

    def _rows(self, positional_embeddings: "Tensor", grid: tuple[int, int]) -> "Tensor":
        rows_ND = self._kept.get(grid)
        if rows_ND is not None:
            self._kept.move_to_end(grid)
            return rows_ND
        rows_ND = super()._rows(positional_embeddings, grid)
        self._kept[grid] = rows_ND
        self._num_rows += len(rows_ND)
        while self._num_rows > self._largest_num_rows and len(self._kept) > 1:
            (height, width), _ = self._kept.popitem(last=False)
            self._num_rows -= height * width
        return rows_ND
