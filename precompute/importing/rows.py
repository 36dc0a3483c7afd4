"""Imported embeddings as the targets of a unit's rows: joined, checked, made unit vectors.

Shape letters in this file: B = images or texts of a batch, K = views of an image, D = embed_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...images.image import DecodedBatch
from ...siglip import ImageRecipe, SquashRecipe
from ...store.format.layout import Modality
from ...version import __version__
from ..executor.row_targets import Wait
from .embeddings import NO_EMBEDDING, Embeddings
from .match import Matches

_CHECK = SquashRecipe(size=(8, 8), resample=0)
"""Images are decoded only to reject damaged ones and to hash the others."""

_NOT_FINITE = "its embedding is not finite"
_ZERO = "its embedding is zero"
_UNIT_TOLERANCE = 1e-2
"""Of a norm that is told to differ from 1: that of bfloat16 rows differs by 2e-3."""


@dataclass(slots=True)
class Norms:
    """Norms of the vectors of one modality, as imported."""

    num_rows: int = 0
    num_other: int = 0
    """Vectors whose norm is not 1."""

    num_not_finite: int = 0
    num_zero: int = 0
    smallest: float = np.inf
    largest: float = 0.0

    def as_json(self) -> dict[str, float]:
        """Return the counts."""
        return {
            "vectors": self.num_rows,
            "not_unit": self.num_other,
            "not_finite": self.num_not_finite,
            "zero": self.num_zero,
        }

    def lines(self, noun: str) -> list[str]:
        """Return what was found, a line for each kind."""
        lines: list[str] = []
        if self.num_other:
            lines.append(
                f"           {self.num_other:,} of {self.num_rows:,} {noun} embeddings are not unit vectors "
                f"(norms {self.smallest:.3g} to {self.largest:.3g}) and are normalised"
            )
        if self.num_not_finite:
            lines.append(f"           {self.num_not_finite:,} {noun} embeddings are not finite")
        if self.num_zero:
            lines.append(f"           {self.num_zero:,} {noun} embeddings are zero")
        return lines


class ImportedTargets:
    """The targets of an import; see RowTargets."""

    def __init__(self, source: Embeddings, matches: Matches, provenance: dict[str, Any]) -> None:
        self._source, self._matches, self._provenance = source, matches, provenance
        self._reasons: dict[tuple[Modality, int], str] = {}
        self.norms: dict[Modality, Norms] = {"image": Norms(), "text": Norms()}

    @property
    def image(self) -> ImageRecipe:
        """See RowTargets."""
        return _CHECK

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """See RowTargets."""
        return 0, 0

    def provenance(self) -> dict[str, Any]:
        """See RowTargets."""
        return {"siglip2_cache": __version__, **self._provenance}

    def start_images(self, batch: DecodedBatch) -> Wait:
        """See RowTargets."""
        row_B = np.array([ref.row for ref in batch.refs], np.int64)
        places = self._matches.find("image", row_B)
        at = pl.Series("at", np.searchsorted(row_B, places["row"].to_numpy()), pl.Int64)
        found = self._source.views(places.with_columns(at), batch)
        for at_B, reason in found.reasons.items():
            self._reasons["image", int(row_B[at_B])] = reason
        decoded = [i for i, image in enumerate(batch.images) if image.reason is None]
        self._check("image", row_B[decoded], found.values_BKD[decoded])
        return lambda: unit_rows(found.values_BKD)

    def start_texts(self, texts: Sequence[str], first_row: int) -> Wait:
        """See RowTargets."""
        row_B = np.arange(first_row, first_row + len(texts))
        places = self._matches.find("text", row_B)
        values_BD = np.full((len(texts), self._source.embed_dim), np.nan, np.float32)
        where = places["row"].to_numpy() - first_row
        values_BD[where] = self._source.vectors("text", places)
        is_lost = np.ones(len(texts), np.bool_)
        is_lost[where] = False
        self._reasons.update((("text", int(row)), NO_EMBEDDING) for row in row_B[is_lost])
        self._check("text", row_B, values_BD[:, None])
        return lambda: unit_rows(values_BD)

    def why_missing(self, modality: Modality, row: int) -> str:
        """See RowTargets."""
        return self._reasons.pop((modality, row), _NOT_FINITE)

    def _check(
        self, modality: Modality, row_B: NDArray[np.int64], values_BKD: NDArray[np.float32]
    ) -> None:
        """Count norms, and note why rows have no target that have none for no other reason."""
        norms = self.norms[modality]
        is_new_B = np.array([(modality, int(row)) not in self._reasons for row in row_B], np.bool_)
        row_B, norm_BK = row_B[is_new_B], _norms(values_BKD[is_new_B])
        is_finite_BK, is_zero_BK = np.isfinite(norm_BK), norm_BK == 0
        for row in row_B[is_zero_BK.any(axis=1) & is_finite_BK.all(axis=1)]:
            self._reasons[modality, int(row)] = _ZERO
        good = norm_BK[is_finite_BK & ~is_zero_BK]
        norms.num_rows += norm_BK.size
        norms.num_not_finite += int((~is_finite_BK).sum())
        norms.num_zero += int(is_zero_BK.sum())
        norms.num_other += int((np.abs(good - 1) > _UNIT_TOLERANCE).sum())
        if len(good):
            norms.smallest = min(norms.smallest, float(good.min()))
            norms.largest = max(norms.largest, float(good.max()))


def unit_rows(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return vectors of norm 1 in float16; those that are zero or not finite become NaN."""
    norms = _norms(values)[..., None]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return (values / norms).astype(np.float16)


def _norms(values: NDArray[np.float32]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.sqrt(np.square(values, dtype=np.float64).sum(axis=-1))
