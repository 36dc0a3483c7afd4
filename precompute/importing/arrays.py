"""Embeddings as arrays, with a name for each row: numpy files, Parquet columns, clip-retrieval folders."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import SourceError
from ...store.format.layout import Modality
from ...store.io.location import Location
from .embeddings import Embeddings, combined
from .files import SourceFiles


@dataclass(frozen=True)
class ArrayPart:
    """Rows of one array and their names."""

    where: str
    """Its file, for messages."""

    modality: Modality
    names: Callable[[], Iterator[pl.DataFrame]]
    """Yields name and view of the rows, in order."""

    shape: tuple[int, int]
    """Rows and width."""

    open_values: Callable[[], NDArray[Any]]
    """Returns the rows, not in memory."""

    files: tuple[Location, ...]
    """The file of the rows and that of the names, which may be one."""

    columns: tuple[str | None, ...] = ()
    """Columns of the files that are read: of vectors, names and views."""

    @cached_property
    def values(self) -> NDArray[Any]:
        """The rows, of any float type."""
        return self.open_values()


class ArrayEmbeddings(Embeddings):
    """Parts that are arrays."""

    place: ClassVar = {"part": pl.Int32(), "item": pl.Int64()}

    def __init__(
        self,
        location: Location,
        kind: str,
        parts: Sequence[ArrayPart],
        opened: SourceFiles,
    ) -> None:
        """Set the parts.

        Raises:
            SourceError: the parts have vectors of several widths.
        """
        first = parts[0]
        for part in parts:
            if part.shape[1] != first.shape[1]:
                raise SourceError(
                    f"{part.where} has vectors of width {part.shape[1]:,}, {first.where} of "
                    f"{first.shape[1]:,}; images and texts of a teacher have one width"
                )
        super().__init__(location, first.shape[1])
        self.kind = kind  # type: ignore[misc]
        self._parts, self._opened = parts, opened

    def images(self) -> Iterator[pl.DataFrame]:
        """See Embeddings."""
        return self._named("image")

    def texts(self) -> Iterator[pl.DataFrame]:
        """See Embeddings."""
        return self._named("text")

    def vectors(self, modality: Modality, places: pl.DataFrame) -> NDArray[np.float32]:
        """See Embeddings."""
        found = np.empty((len(places), self.embed_dim), np.float32)
        part_P, item_P = places["part"].to_numpy(), places["item"].to_numpy()
        with np.errstate(over="ignore"):  # a float64 beyond float32 is not finite
            for number in np.unique(part_P):
                where = np.flatnonzero(part_P == number)
                where = where[np.argsort(item_P[where])]
                found[where] = self._parts[number].values[item_P[where]]
        return found

    def digest(self) -> str:
        """See Embeddings."""
        files = dict.fromkeys(file for part in self._parts for file in part.files)
        return combined(map(self._opened.sha256, files))

    def digest_of_parts(self) -> str:
        """See Embeddings."""
        return combined(
            json.dumps([part.modality, *map(self._opened.sha256, part.files), *part.columns])
            for part in self._parts
        )

    def _named(self, modality: Modality) -> Iterator[pl.DataFrame]:
        for number, part in enumerate(self._parts):
            if part.modality != modality:
                continue
            item = 0
            for frame in part.names():
                items = pl.int_range(item, item + len(frame), dtype=pl.Int64, eager=True)
                yield frame.with_columns(part=pl.lit(number, pl.Int32), item=items)
                item += len(frame)
            if item != part.shape[0]:
                raise SourceError(
                    f"{part.where} has {part.shape[0]:,} vectors and {item:,} names; there is one "
                    "name for each vector"
                )
