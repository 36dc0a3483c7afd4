"""Corpora: each file of this folder reads one kind and yields plain samples in a fixed order.

A source knows the corpus and nothing of the cache: no rows, no units, no teacher. It is a pure
function of what lies on disk: two scans of one corpus give equal samples in equal order.
"""

from .base import Caption, Piece, Problem, Sample, Source, Unused, scan
from .fields.columns import TableColumns
from .open import open_source

__all__ = [
    "Caption",
    "Piece",
    "Problem",
    "Sample",
    "Source",
    "TableColumns",
    "Unused",
    "open_source",
    "scan",
]
