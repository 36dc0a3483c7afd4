"""Images and texts of a cache with their catalog entries: keys, captions, languages."""

from collections.abc import Iterable

import polars as pl

from ..store.cache import Cache
from .report import Caption, Item

_SHOWN_KEYS = 3
"""Most keys of images with one caption; a caption such as "image" may have a million."""


def image_items(cache: Cache, rows: Iterable[int], *, view: int = 0) -> dict[int, Item]:
    """Return images by row, without rows that are not in the catalog."""
    wanted = sorted(set(rows))
    among = pl.col("row").is_in(wanted)
    lines = cache.captions().filter(among).collect()
    texts = dict(_texts(cache, lines["text_row"].unique().to_list()))
    captions: dict[int, dict[Caption, None]] = {}
    for row, text_row, lang in lines.select("row", "text_row", "lang").iter_rows():
        captions.setdefault(row, {})[Caption(texts[text_row], lang)] = None
    samples = cache.samples().filter(among).select("row", "key", "label").collect()
    return {
        row: Item(
            kind="image",
            row=row,
            key=key,
            view=view,
            captions=tuple(captions.get(row, ())),
            values={} if label is None else {"label": label},
        )
        for row, key, label in samples.iter_rows()
    }


def text_items(cache: Cache, text_rows: Iterable[int]) -> dict[int, Item]:
    """Return texts by text_row, with languages, keys of images, and classes they are prompts for."""
    wanted = sorted(set(text_rows))
    among = pl.col("text_row").is_in(wanted)
    lines = cache.captions().filter(among).collect()
    holders = lines.group_by("text_row").agg(
        pl.col("lang").drop_nulls().unique().sort().alias("langs"),
        pl.col("row").unique().sort().alias("rows"),
    )
    by_text = {text_row: (langs, rows) for text_row, langs, rows in holders.iter_rows()}
    shown = {row for _, rows in by_text.values() for row in rows[:_SHOWN_KEYS]}
    keys = dict(
        cache.samples()
        .filter(pl.col("row").is_in(sorted(shown)))
        .select("row", "key")
        .collect()
        .iter_rows()
    )
    prompts = (
        cache.table("prompts").filter(among).select("text_row", "label").unique().sort("label")
    )
    labels: dict[int, list[str]] = {}
    for text_row, label in prompts.collect().iter_rows():
        labels.setdefault(text_row, []).append(label)
    items: dict[int, Item] = {}
    for text_row, text in _texts(cache, wanted):
        langs, rows = by_text.get(text_row, ([], []))
        items[text_row] = Item(
            kind="text",
            row=text_row,
            captions=tuple(Caption(text, lang) for lang in langs) or (Caption(text),),
            remarks=tuple(f"prompt: {label}" for label in labels.get(text_row, ())),
            values={"keys": [keys[row] for row in rows[:_SHOWN_KEYS]], "images": len(rows)},
        )
    return items


def items_of(cache: Cache, kind: str, rows: Iterable[int], *, view: int = 0) -> dict[int, Item]:
    """Return images or texts by row."""
    return image_items(cache, rows, view=view) if kind == "image" else text_items(cache, rows)


def own_text_rows(cache: Cache, rows: Iterable[int]) -> dict[int, set[int]]:
    """Return the text_rows of the captions of each image, by row."""
    lines = cache.captions().filter(pl.col("row").is_in(sorted(set(rows))))
    own: dict[int, set[int]] = {}
    for row, text_row in lines.select("row", "text_row").collect().iter_rows():
        own.setdefault(row, set()).add(text_row)
    return own


def _texts(cache: Cache, text_rows: list[int]) -> Iterable[tuple[int, str]]:
    found = cache.texts().filter(pl.col("text_row").is_in(text_rows)).sort("text_row").collect()
    return found.select("text_row", "text").iter_rows()
