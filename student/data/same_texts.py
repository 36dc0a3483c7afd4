"""Texts that are equal to a model, since its cleaning makes them equal ("A dog", "a dog").

The catalog keeps every text as the corpus has it, because a cache may have teachers with different
cleanings. So equal texts are found here, when the cache is read.

Shape letters in this file: T = text_rows of the cache, gaps counted.
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...siglip import Checkpoint, find_text_cleaning, read_text_settings
from ...store.cache import Cache
from ...store.format.catalog import read_part
from ...store.format.teacher_record import TeacherRecord
from ...store.targets.targets import Targets

Cleaning = Callable[[str], str]


def cleaning_for(teacher: TeacherRecord, student: Checkpoint | None = None) -> Cleaning:
    """Return a cleaning that makes texts equal if they are equal to the teacher or to the student.

    Args:
        teacher: with an unknown cleaning, no texts are equal to it.
        student: checkpoint whose text tower is trained; None: there is none.
    """
    names = [teacher.identity.get("text_cleaning")]
    if student is not None and student.has_text:
        names.append(read_text_settings(student.folder).cleaning)
    steps = [
        step for name in dict.fromkeys(names) if (step := find_text_cleaning(name)) is not None
    ]

    def clean(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return clean


def one_text_of(cache: Cache, targets: Targets, clean: Cleaning) -> NDArray[np.int64]:
    """Return for each text_row the first equal one with a target, (T,).

    If no equal one has a target it is the first of them. Takes 24 bytes of memory a text, and the texts
    that have an equal one.
    """
    one_T = np.arange(len(targets))
    rows, hashes = _hashes(cache, clean)
    hashed = pl.DataFrame({"text_row": rows, "hash": hashes})
    alike = hashed.filter(pl.col("hash").is_duplicated()).select("text_row")
    if alike.is_empty():
        return one_T
    lines = cache.texts().join(alike.lazy(), on="text_row", how="semi").collect()
    lines = lines.select(
        "text_row",
        pl.Series("text", _cleaned(lines["text"], clean)),
        pl.Series("has_target", targets.available(lines["text_row"].to_numpy())),
    ).sort("has_target", "text_row", descending=[True, False])
    first = lines.select(pl.col("text_row").first().over("text")).to_series()
    one_T[lines["text_row"].to_numpy()] = first.to_numpy()
    return one_T


def _hashes(cache: Cache, clean: Cleaning) -> tuple[pl.Series, pl.Series]:
    """Return every text_row and a 64-bit hash of its cleaned text; reads one part at a time."""
    rows, hashes = pl.Series(dtype=pl.Int64), pl.Series(dtype=pl.UInt64)
    for part in cache.manifest.parts("texts"):
        lines = read_part("texts", cache.part_file(part))
        rows.append(lines["text_row"])
        hashes.append(pl.Series(_cleaned(lines["text"], clean), dtype=pl.String).hash())
    return rows, hashes


def _cleaned(texts: pl.Series, clean: Cleaning) -> Sequence[str]:
    return [clean(text) for text in texts]
