"""Corpora: each file of this folder reads one kind and yields plain samples in a fixed order.

A source knows the corpus and nothing of the cache: no rows, no units, no teacher. It is a pure
function of the files: two scans of one corpus give equal samples in equal order.
"""

from .base import CorpusPart, Source
from .fields.columns import TableColumns
from .open import open_source
from .samples import Caption, Problem, Sample, Unused

__all__ = [
    "Caption",
    "CorpusPart",
    "Problem",
    "Sample",
    "Source",
    "TableColumns",
    "Unused",
    "open_source",
]
