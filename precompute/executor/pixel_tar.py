"""The tar of a unit with its images small, and its table: written as images come, committed at the end."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from ...images.image import DecodedImage
from ...store.cache import Cache
from ...store.format import layout
from ...store.format.catalog import PIXELS_SCHEMA, encode_table
from ...store.format.kept_pixels import BLOCK, END, member_header, padding
from ...store.format.manifest import Unit
from ...store.format.records import sha256_hex
from ...store.format.transaction import Transaction

_COLUMNS = {
    "row": pl.Int64,
    "offset": pl.Int64,
    "length": pl.Int64,
    "width": pl.Int32,
    "height": pl.Int32,
    "sha256": pl.Binary,
    "source_sha256": pl.Binary,
}


@dataclass(slots=True)
class PixelTar:
    """A unit being written: its tar so far, and where each image is in it."""

    unit: Unit
    attempt: int
    transaction: Transaction
    append: Callable[[bytes], None]
    lines: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    num_bytes: int = 0

    def add(self, row: int, image: DecodedImage) -> int:
        """Append an image; return its bytes in the tar."""
        length, before = len(image.kept), self.num_bytes
        self.append(member_header(row, length) + image.kept + bytes(padding(length)))
        self.num_bytes += BLOCK + length + padding(length)
        own_hash = bytes.fromhex(sha256_hex(image.kept))
        width, height = image.kept_size
        self.lines.append((row, before + BLOCK, length, width, height, own_hash, image.sha256))
        return self.num_bytes - before

    def commit(self, rejected: Mapping[int, str]) -> None:
        """Publish the tar with its table, after open_tar; another process may have been first.

        Args:
            rejected: reason by row of each image that is not in the tar.
        """
        unit = self.unit
        frame = pl.DataFrame(self.lines, schema=_COLUMNS, orient="row")
        table = encode_table(frame, PIXELS_SCHEMA)
        self.transaction.add(layout.pixels_index(unit.number), table)
        self.transaction.commit(
            {
                "modality": "image",
                "unit": unit.number,
                "attempt": self.attempt,
                "first_row": unit.rows.first,
                "num_rows": unit.rows.count,
                "num_rejected": len(rejected),
                "rejected": [{"row": row, "reason": rejected[row]} for row in sorted(rejected)],
                "provenance": _provenance(),
            }
        )

    def abandon(self) -> None:
        """Remove the tar, which is not published."""
        self.transaction.abandon()


@contextmanager
def open_tar(cache: Cache, unit: Unit, attempt: int) -> Generator[PixelTar]:
    """Return a context whose value takes images; the tar is whole at its end, or gone after an error."""
    transaction = Transaction(cache.files, layout.pixels_unit_record(unit.number, attempt))
    with transaction.adding(layout.pixels_tar(unit.number)) as append:
        yield PixelTar(unit, attempt, transaction, append)
        append(END)


def _provenance() -> dict[str, Any]:
    import PIL
    from PIL import features

    return {
        "pillow": PIL.__version__,
        "libjpeg_turbo": features.version_feature("libjpeg_turbo"),
    }
