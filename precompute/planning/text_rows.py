"""Giving every caption and prompt the row of its text, in bounded memory; equal texts share one row.

Texts are compared in buckets by hash, and numbered in the order of their first appearance.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import polars as pl

from .existing import ExistingCatalog
from .part_writer import PartWriter
from .spill import Buckets, Scratch, SpillBuffer

_TAGGED = {"cap": pl.Int64(), "seq": pl.Int64(), "lang": pl.String(), "kind": pl.String()}
CAPTION = {**_TAGGED, "text": pl.String()}
"""Columns of a caption: its number, its sample's number, language, kind and text. A seq of -1 - i is prompt
i, which belongs to no sample."""

_RESOLVED = {**_TAGGED, "text_row": pl.Int64()}


def resolve_texts(
    captions: SpillBuffer,
    rows: Buckets,
    existing: ExistingCatalog,
    writer: PartWriter,
    scratch: Scratch,
) -> tuple[Buckets, int]:
    """Write the new unique texts of new samples and prompts, and find the text row of every caption.

    Args:
        captions: all captions (columns of CAPTION) and prompts.
        rows: seq, row and is_new of every sample, by seq // bucket_rows.
        existing: the catalog so far.
        writer: of the texts.
        scratch: temporary space.

    Returns:
        (cap, seq, lang, kind, text_row) by cap // bucket_rows, and how many texts are new. text_row is null
        for a caption of a sample of the cache whose text is not in the cache.
    """
    bucket_rows = scratch.bucket_rows
    by_cap = Buckets(scratch, _RESOLVED)
    first_seen = Buckets(scratch, {"first": pl.Int64(), "text": pl.String()})
    waiting = Buckets(scratch, {**_TAGGED, "first": pl.Int64()})
    is_unseen = pl.col("text_row").is_null() & pl.col("is_new")
    for ours in _join_existing_texts(captions, rows, existing, scratch):
        by_cap.append(ours.filter(~is_unseen), pl.col("cap") // bucket_rows)
        new = ours.filter(is_unseen)
        by_first = pl.col("first") // bucket_rows
        first_seen.append(new.filter(pl.col("cap") == pl.col("first")), by_first)
        waiting.append(new, by_first)
    next_text_row = existing.next_text_row
    for number in first_seen.numbers():
        texts = first_seen.collect(number).sort("first").with_row_index("i")
        texts = texts.with_columns(text_row=next_text_row + pl.col("i").cast(pl.Int64))
        next_text_row += texts.height
        writer.write(texts.select("text_row", "text"))
        found = waiting.collect(number).join(texts.select("first", "text_row"), on="first")
        by_cap.append(found, pl.col("cap") // bucket_rows)
    return by_cap, next_text_row - existing.next_text_row


def _join_existing_texts(
    captions: SpillBuffer, rows: Buckets, existing: ExistingCatalog, scratch: Scratch
) -> Iterator[pl.DataFrame]:
    """Yield captions in buckets by text, with is_new, text_row, and the cap of the first new equal text."""
    count = scratch.num_buckets(captions.num_rows + existing.num_texts)
    by_text = pl.col("text").hash(seed=0) % count
    theirs = Buckets(scratch, {"text": pl.String(), "text_row": pl.Int64()})
    for frame in existing.parts("texts"):
        theirs.append(frame, by_text)
    ours = Buckets(scratch, {**CAPTION, "is_new": pl.Boolean()})
    collect = lru_cache(maxsize=1)(rows.collect)  # consecutive frames are mostly in one bucket
    for frame in captions.frames():
        if existing.cache is None:
            marked = frame.with_columns(is_new=pl.lit(True))
        else:
            joined = join_rows(frame, collect, scratch.bucket_rows)
            marked = joined.with_columns(pl.col("is_new").fill_null(True))
        ours.append(marked, by_text)
    first = pl.col("cap").filter(pl.col("is_new")).min().over("text")
    for number in ours.numbers():
        found = ours.collect(number).with_columns(first=first)
        yield found.join(theirs.collect(number), on="text", how="left")


def join_rows(
    captions: pl.DataFrame, rows: Callable[[int], pl.DataFrame], bucket_rows: int
) -> pl.DataFrame:
    """Return captions, in order of samples, with row and is_new of their samples.

    Joins one bucket of rows at a time: a few captions may be spread over many buckets.
    """
    parts = captions.with_columns(_bucket=pl.col("seq") // bucket_rows).partition_by(
        "_bucket", maintain_order=True, as_dict=True, include_key=False
    )
    return pl.concat(
        part.join(rows(number), on="seq", how="left", maintain_order="left")
        for (number,), part in parts.items()
    )
