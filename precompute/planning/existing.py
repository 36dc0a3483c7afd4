"""The catalog that a cache already has, for a plan that appends to it."""

from collections.abc import Iterator

import polars as pl

from ...errors import DamagedCacheError
from ...store.cache import Cache
from ...store.format.catalog import Table, empty_table, read_part
from ...store.format.manifest import Span

FROZEN = {
    "path": "image",
    "member": "image",
    "offset": "first byte",
    "length": "size",
    "row_group": "row group",
    "index": "row",
    "label": "label",
}
"""Columns of a sample that a later plan must not change, and their names in messages."""

EXISTING_SAMPLE = {
    "key": pl.String(),
    "row": pl.Int64(),
    "source": pl.String(),
    **{
        f"old_{name}": pl.Int64()
        if name in ("offset", "length", "row_group", "index")
        else pl.String()
        for name in FROZEN
    },
    "old_bytes": pl.Int64(),
    "old_mtime": pl.Int64(),
}
"""Columns of ExistingCatalog.samples()."""


class ExistingCatalog:
    """The catalog so far, part by part; empty if there is no cache yet."""

    def __init__(self, cache: Cache | None) -> None:
        self.cache = cache
        manifest = cache.manifest if cache else None
        self.next_row = manifest.next_free_row("image") if manifest else 0
        self.next_text_row = manifest.next_free_row("text") if manifest else 0
        self.num_samples = cache.num_samples if cache else 0
        self.num_texts = cache.num_texts if cache else 0
        self.source_names = [record.name for record in manifest.sources] if manifest else []
        self.num_files = sum(p.num_rows for p in manifest.parts("files")) if manifest else 0

    @property
    def root(self) -> str:
        """Folder of the cache, for messages."""
        return str(self.cache.root) if self.cache else "the cache"

    def num_parts(self, table: Table) -> int:
        """Return the number of parts of a table."""
        return len(self.cache.manifest.parts(table)) if self.cache else 0

    def parts(self, table: Table) -> Iterator[pl.DataFrame]:
        """Yield the parts of a table in order."""
        if self.cache is not None:
            for part in self.cache.manifest.parts(table):
                frame = read_part(table, self.cache.part_file(part))
                if len(frame) != part.num_rows:  # polars reads a folder in its place as no rows
                    raise DamagedCacheError(
                        f"{part.path} is damaged: it has {len(frame):,} rows instead of "
                        f"{part.num_rows:,}; run siglip2-cache verify {self.root}"
                    )
                yield frame

    def samples(self) -> Iterator[pl.DataFrame]:
        """Yield the samples with their source, and the size and time of their file when planned."""
        for samples in self.parts("samples"):
            assert self.cache is not None
            if samples.is_empty():
                continue
            numbers = samples["file"].to_numpy()
            low, high = int(numbers.min()), int(numbers.max())
            among = Span(first=low, count=high - low + 1)
            is_among = pl.col("file").is_between(low, high)
            files = self.cache.table("files", among).filter(is_among)
            named = files.select(
                "file", "source", old_path="path", old_bytes="num_bytes", old_mtime="mtime_ns"
            )
            joined = samples.join(named.collect(), on="file", how="left").rename(
                {name: f"old_{name}" for name in FROZEN if name != "path"}
            )
            yield joined.select(*EXISTING_SAMPLE)

    def problems(self) -> pl.DataFrame:
        """Return source, place and reason of the recorded problems."""
        frames = [f.select("source", "place", "reason") for f in self.parts("problems")]
        return pl.concat(frames or [empty_table("problems").select("source", "place", "reason")])

    def prompts(self) -> set[tuple[str, str, str | None, str]]:
        """Return (label, template, lang, text) of the recorded prompts."""
        if self.cache is None:
            return set()
        prompts = self.cache.table("prompts").collect()
        # Only the texts of the prompts: all texts may not fit in memory.
        wanted = prompts["text_row"].unique().implode()
        texts = self.cache.texts().filter(pl.col("text_row").is_in(wanted)).collect()
        joined = prompts.join(texts, on="text_row", how="left")
        return set(joined.select("label", "template", "lang", "text").iter_rows())
