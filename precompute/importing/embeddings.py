"""What every kind of imported embeddings is: names of images and texts, and a vector for each place.

Shape letters in this file: P = places, B = images of a batch, K = views of an image, D = embed_dim.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...images.image import DecodedBatch
from ...store.format.layout import Modality
from ...store.io.location import Location

NO_EMBEDDING = "no embedding of it was imported"


@dataclass(slots=True)
class FoundViews:
    """The vectors of a batch of images."""

    values_BKD: NDArray[np.float32]
    """NaN where there is none."""

    reasons: dict[int, str] = field(default_factory=dict[int, str])
    """Why images, by their position in the batch, have no target."""


class Embeddings(ABC):
    """Embeddings in files. Each kind is a subclass with a file of its own."""

    kind: ClassVar[str]
    """Short name, as teachers record it."""

    place: ClassVar[Mapping[str, pl.DataType]]
    """Columns that say where a vector is."""

    def __init__(self, location: Location, embed_dim: int) -> None:
        self.location, self.embed_dim = location, embed_dim

    @abstractmethod
    def images(self) -> Iterator[pl.DataFrame]:
        """Yield the images in order: name, view and the columns of place."""

    @abstractmethod
    def texts(self) -> Iterator[pl.DataFrame]:
        """Yield the texts in order: name (the text), view (0) and the columns of place."""

    @abstractmethod
    def vectors(self, modality: Modality, places: pl.DataFrame) -> NDArray[np.float32]:
        """Return the vectors of some places, (P, D) as stored; of images that of the view."""

    @abstractmethod
    def digest(self) -> str:
        """Return the SHA-256 of what is imported: of all files, in any order and of any names."""

    def digest_of_parts(self) -> str | None:
        """Return the SHA-256 of which columns are read, and of which names belong to which vectors.

        None where nothing of it can be chosen.
        """
        return None

    def views(self, places: pl.DataFrame, batch: DecodedBatch) -> FoundViews:
        """Return the vectors of a batch of images.

        Args:
            places: position in the batch (``at``), view, and the columns of place.
            batch: the images; those that could not be decoded have no pixels.
        """
        num_images, num_views = batch.pixels.shape[:2]
        found = FoundViews(
            np.full((num_images, num_views, self.embed_dim), np.nan, np.float32),
        )
        where = places["at"].to_numpy(), places["view"].to_numpy()
        found.values_BKD[where] = self.vectors("image", places)
        has_any = np.zeros((num_images, num_views), np.bool_)
        has_any[where] = True
        for at in np.flatnonzero(~has_any.all(axis=1)):
            view = int(np.argmin(has_any[at]))
            found.reasons[int(at)] = (
                f"no embedding of its view {view} was imported"
                if has_any[at].any()
                else NO_EMBEDDING
            )
        return found

    def close(self) -> None:
        """Close the files."""
        return

    def note(self) -> str | None:
        """Return a line about what cannot be imported faithfully, after the import."""
        return None


def combined(digests: Iterable[str]) -> str:
    """Return the SHA-256 of some digests in any order."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
