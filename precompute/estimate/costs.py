"""What a build costs, by formula: bytes of arrays and of tables, arithmetic, what a GPU does in a second.

Nothing here is measured but where it says so; ``siglip2-cache estimate`` shows the formulas.
"""

from dataclasses import dataclass

from ...siglip import Architecture
from ...store.format.catalog import PART_ROWS, Table
from ...store.format.layout import Modality
from ...store.format.shard import ArrayLayout

SAMPLE_BYTES, VIEW_BYTES, TEXT_BYTES = 7, 16, 34
"""Of the catalog's Parquet, compressed: a line of samples in an archive, a stored view, a text with its
first caption. Expected of keys and captions as the web has them; yours may be longer."""

CAPTION_BYTES, FILE_BYTES = 4, 6
"""Likewise: a caption whose text another one has, a file of the corpus."""

IMAGE_BYTES = 36
"""Likewise: a line of teachers/<name>/images, 32 of them a hash."""

RECORD_BYTES = 800
"""Of a unit's record."""

PEAK_TFLOPS = {
    "h100": 989.0,
    "h100-pcie": 756.0,
    "h200": 989.0,
    "b200": 2250.0,
    "a100": 312.0,
    "a10": 125.0,
    "l4": 121.0,
    "l40s": 362.0,
    "mi300x": 1307.0,
    "rtx3090": 71.0,
    "rtx4090": 165.0,
    "t4": 65.0,
}
"""10^12 bfloat16 operations a second (t4: float16), dense, sums in float32, by the vendors' data sheets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to be embedded, and where it lies."""

    num_images: int
    num_captions: int
    num_texts: int
    """Unique captions."""

    num_views: int
    num_files: int
    """Files of the corpus."""

    def flops_of_images(self, architecture: Architecture) -> int:
        """Floating-point operations of all views of all images."""
        return self.num_images * self.num_views * architecture.flops_of_view

    def flops_of_texts(self, architecture: Architecture) -> int:
        """Floating-point operations of all texts."""
        return self.num_texts * architecture.flops_of_text

    def array(self, modality: Modality, embed_dim: int, shard_rows: int) -> ArrayLayout:
        """Return the layout of a new cache's targets."""
        return ArrayLayout(
            modality=modality,
            num_rows=self.num_images if modality == "image" else self.num_texts,
            num_views=self.num_views if modality == "image" else 1,
            embed_dim=embed_dim,
            shard_rows=shard_rows,
        )

    @property
    def catalog_lines(self) -> dict[Table, int]:
        """Lines of the catalog's tables. A whole image has no view to store where it is the only one."""
        return {
            "files": self.num_files,
            "samples": self.num_images,
            "captions": self.num_captions,
            "texts": self.num_texts,
            "views": self.num_images * self.num_views if self.num_views > 1 else 0,
        }

    @property
    def catalog_bytes(self) -> dict[Table, int]:
        """Bytes of the catalog's tables, as expected."""
        lines = self.catalog_lines
        return {
            "files": FILE_BYTES * lines["files"],
            "samples": SAMPLE_BYTES * lines["samples"],
            "captions": CAPTION_BYTES * (lines["captions"] - lines["texts"]),
            "texts": TEXT_BYTES * lines["texts"],
            "views": VIEW_BYTES * lines["views"],
        }

    @property
    def catalog_parts(self) -> dict[Table, int]:
        """Files of the catalog's tables."""
        return {table: -(-lines // PART_ROWS) for table, lines in self.catalog_lines.items()}


def array_bytes(array: ArrayLayout) -> int:
    """Return the bytes of all shards of an array without gaps, exactly."""
    num_full, rest = divmod(array.num_rows, array.shard_rows)
    short = array.shard_bytes(rest) if rest else 0
    return num_full * array.shard_bytes(array.shard_rows) + short
