"""Small caches to look at, and reports of what is in them."""

from pathlib import Path
from typing import Any

import polars as pl

from kit.fakes import FakeTeacher, SilentProgress, config_of
from siglip2_cache import open_cache
from siglip2_cache.neighbors.report import Caption, Group, Item, Report
from siglip2_cache.precompute.build import build
from siglip2_cache.store.cache import Cache


def build_cache(corpus: Path, cache: Path, checkpoint: Path, **settings: Any) -> Cache:
    """Build a cache with the fake teacher, or go on with it."""
    config = config_of(corpus, cache, checkpoint, **settings)
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    return open_cache(cache)


def keys_of(cache: Cache) -> dict[str, int]:
    """Return the row of each key, without its namespace."""
    samples = cache.samples().select("key", "row").collect()
    return {key.rpartition("/")[2]: row for key, row in samples.iter_rows()}


def image_item(cache: Cache, row: int, cosine: float | None = None, **more: Any) -> Item:
    """Return an image of a cache with its captions."""
    told = cache.samples().filter(pl.col("row") == row).collect()
    captions = cache.captions().filter(pl.col("row") == row)
    texts = captions.join(cache.texts(), on="text_row", maintain_order="left")
    lines = texts.select("text", "lang").collect().iter_rows()
    more.setdefault("captions", tuple(Caption(text, lang) for text, lang in lines))
    key = told["key"][0] if len(told) else None
    return Item(kind="image", row=row, key=key, cosine=cosine, **more)


def text_item(text: str, lang: str | None = None, **more: Any) -> Item:
    """Return a text, of a cache where a row is given."""
    return Item(kind="text", captions=(Caption(text, lang),), **more)


def report_of(cache: Cache, *groups: Group, **more: Any) -> Report:
    """Return a report of some groups."""
    more.setdefault("title", "Neighbors")
    more.setdefault("summary", ("2 queries among 6 images, exact",))
    return Report(cache=cache.root, teachers=cache.teachers, groups=groups, **more)
