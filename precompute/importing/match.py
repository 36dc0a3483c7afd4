"""Joining the names of embeddings to the rows of a cache, in bounded memory."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import SettingError, SourceError
from ...formatting import format_count
from ...store.cache import Cache
from ...store.format.layout import Modality
from ..planning.existing import ExistingCatalog
from ..planning.spill import Buckets, Scratch
from .embeddings import Embeddings

_SHOWN = 3
_TRIED = 64
"""Names whose form decides that of all."""

_ENDING = re.compile(r"\.[A-Za-z0-9]{1,5}$")


@dataclass(slots=True)
class NameCounts:
    """What became of the names of one modality."""

    num_names: int = 0
    num_matched: int = 0
    num_unknown: int = 0
    """Names that the cache does not have."""

    num_repeated: int = 0
    unknown: list[str] = field(default_factory=list[str])
    repeated: list[str] = field(default_factory=list[str])
    """The first few."""

    are_paths: bool = False
    """Whether the names of images are paths of their files instead of keys."""

    def as_json(self) -> dict[str, int]:
        """Return the counts."""
        return {
            "matched": self.num_matched,
            "unknown": self.num_unknown,
            "repeated": self.num_repeated,
        }

    def lines(self, modality: Modality) -> list[str]:
        """Return what was found, a line each."""
        noun, what = "text", "text"
        if modality == "image":
            noun, what = "path" if self.are_paths else "key", "image"
        lines = [f"{what + 's':<10} {format_count(self.num_matched, 'embedding')} joined by {noun}"]
        if self.num_unknown:
            names = f"{self.num_unknown:,} {_plural(noun, self.num_unknown)}"
            shown = _few(self.unknown, self.num_unknown)
            lines.append(f"           {names} that the cache does not have: {shown}")
        if self.num_repeated and modality == "image":
            names = f"{self.num_repeated:,} {_plural(noun, self.num_repeated)}"
            shown = _few(self.repeated, self.num_repeated)
            lines.append(f"           {names} given twice, the first embedding is taken: {shown}")
        return lines


class Matches:
    """Where the embedding of each row of a cache is."""

    def __init__(self, source: Embeddings, cache: Cache, scratch: Scratch) -> None:
        """Read all names of the source.

        Raises:
            SourceError: they cannot be read.
            SettingError: a view is not one of the cache.
        """
        self._source, self._cache, self._scratch = source, cache, scratch
        self.counts: dict[Modality, NameCounts] = {}
        self._places: dict[Modality, Buckets] = {
            "image": self._join("image", source.images()),
            "text": self._join("text", source.texts()),
        }
        self._bucket = lru_cache(maxsize=2)(self._read_bucket)

    def find(self, modality: Modality, rows: Sequence[int] | NDArray[np.int64]) -> pl.DataFrame:
        """Return row, view and place of the embeddings of some rows, which ascend."""
        rows = np.asarray(rows, np.int64)
        frames: list[pl.DataFrame] = []
        for number in np.unique(rows // self._scratch.bucket_rows):
            frame, row_N = self._bucket(modality, int(number))
            first, end = np.searchsorted(row_N, [rows[0], rows[-1] + 1])
            frames.append(frame[first:end].filter(pl.Series(np.isin(row_N[first:end], rows))))
        return pl.concat(frames)

    def _read_bucket(
        self, modality: Modality, number: int
    ) -> tuple[pl.DataFrame, NDArray[np.int64]]:
        frame = self._places[modality].collect(number).sort("row", "view")
        return frame, frame["row"].to_numpy()

    def _join(self, modality: Modality, frames: Iterator[pl.DataFrame]) -> Buckets:
        scratch, counts = self._scratch, self.counts.setdefault(modality, NameCounts())
        place = {"view": pl.Int64(), **self._source.place}
        found = Buckets(scratch, {"row": pl.Int64(), **place})
        named = {"name": pl.String(), "given": pl.String(), "seq": pl.Int64(), **place}
        num_buckets = scratch.num_buckets(self._cache.manifest.count(modality))
        bucket = pl.col("name").hash(seed=0) % num_buckets
        ours, rename = Buckets(scratch, named), None
        for frame in frames:
            frame = frame.filter(pl.col("name").is_not_null())
            if len(frame) == 0:
                continue
            self._refuse_other_views(frame)
            if rename is None:
                rename = pl.col("name").str.strip_chars()
                if modality == "image":
                    rename, counts.are_paths = self._name_rule(frame["name"].head(_TRIED).to_list())
            seq = pl.int_range(pl.len(), dtype=pl.Int64) + counts.num_names
            frame = frame.with_columns(given="name", name=rename, seq=seq)
            ours.append(frame.select(*named), bucket)
            counts.num_names += len(frame)
        theirs = self._catalog(modality, bucket, by_path=counts.are_paths)
        unknown: list[tuple[int, str]] = []
        repeated: list[tuple[int, str]] = []
        for number in ours.numbers():
            mine = ours.collect(number).sort("seq")
            is_first = pl.struct("name", "view").is_first_distinct()
            again = mine.filter(~is_first)
            joined = mine.filter(is_first).join(theirs.collect(number), on="name", how="left")
            lost = joined.filter(pl.col("row").is_null())
            known = joined.filter(pl.col("row").is_not_null())
            counts.num_repeated += len(again)
            counts.num_unknown += len(lost)
            counts.num_matched += len(known)
            unknown += lost.select("seq", "given").head(_SHOWN).rows()
            repeated += again.select("seq", "given").head(_SHOWN).rows()
            found.append(known.select("row", *place), pl.col("row") // scratch.bucket_rows)
        counts.unknown = [name for _, name in sorted(unknown)[:_SHOWN]]
        counts.repeated = [name for _, name in sorted(repeated)[:_SHOWN]]
        return found

    def _catalog(self, modality: Modality, bucket: pl.Expr, *, by_path: bool) -> Buckets:
        """Return name and row of everything in the catalog; the name of an image is its key or its path."""
        theirs = Buckets(self._scratch, {"name": pl.String(), "row": pl.Int64()})
        catalog = ExistingCatalog(self._cache)
        if modality == "text":
            for part in catalog.parts("texts"):
                theirs.append(part.select(name="text", row="text_row"), bucket)
        elif by_path:
            for part in catalog.samples():
                is_whole = pl.col("old_offset").is_null() & pl.col("old_row_group").is_null()
                theirs.append(part.filter(is_whole).select("row", name=_path("old_path")), bucket)
        else:
            for part in catalog.parts("samples"):
                theirs.append(part.select("row", name="key"), bucket)
        return theirs

    def _refuse_other_views(self, frame: pl.DataFrame) -> None:
        num_views = self._cache.num_views
        wrong = frame.filter(~pl.col("view").is_between(0, num_views - 1))
        if len(wrong):
            name, view = wrong.select("name", "view").row(0)
            raise SettingError(
                f"{self._source.location} has view {view} of {name!r}, and {self._cache.root} has views "
                f"0..{num_views - 1} of each image; import it into a cache with its views (--views)"
            )

    def _name_rule(self, names: list[str]) -> tuple[pl.Expr, bool]:
        """Return the expression that maps a name to that in the catalog, and whether that is a path.

        A name may be a key; the path of an image whose key is made of it, with folders before and an ending
        after it; or, if no name is a key, the path of an image with any key, with folders before it. The form
        that most of the first names have decides.
        """
        prefixes = [f"{name}/" if name else "" for name in self._cache.sources]
        parts = names[0].split("/")
        cuts = ["", *("/".join(parts[:i]) + "/" for i in range(1, min(len(parts), _TRIED)))]
        rules = [
            (cut, drops, prefix)
            for prefix in dict.fromkeys(["", *prefixes])
            for cut in cuts
            for drops in (False, True)
        ]
        tried = {rule: [_apply(rule, name) for name in names] for rule in rules}
        for by_path in (False, True):
            known = self._known({each for made in tried.values() for each in made}, by_path=by_path)
            counts = {rule: sum(each in known for each in made) for rule, made in tried.items()}
            best = max(rules, key=counts.__getitem__)
            if counts[best]:
                break
        else:
            best, by_path = rules[0], False
        cut, drops, prefix = best
        name = pl.col("name").str.strip_prefix(cut)
        name = name.str.replace(_ENDING.pattern, "") if drops else name
        return pl.lit(prefix) + name, by_path

    def _known(self, names: set[str], *, by_path: bool) -> set[str]:
        """Return which of the names are keys, or paths of images."""
        wanted = pl.Series(sorted(names), dtype=pl.String).implode()
        if not by_path:
            keys = self._cache.samples().filter(pl.col("key").is_in(wanted)).select("key")
            return set(keys.collect()["key"].to_list())
        files = self._cache.table("files").select(name=_path("path"))
        return set(files.filter(pl.col("name").is_in(wanted)).collect()["name"].to_list())


def _path(column: str) -> pl.Expr:
    """Return the path of an image from the root of its source, after the name of the source if it has one."""
    source = pl.col("source")
    return (
        pl.when(source == "").then(column).otherwise(pl.concat_str(source, column, separator="/"))
    )


def _apply(rule: tuple[str, bool, str], name: str) -> str:
    cut, drops, prefix = rule
    name = name.removeprefix(cut)
    return prefix + (_ENDING.sub("", name) if drops else name)


def refuse_unmatched(matches: Matches, source: Embeddings, cache: Cache) -> None:
    """Refuse an import whose names of images, or without these texts, are all unknown to the cache.

    Raises:
        SourceError: names the first names of both.
    """
    counts = matches.counts["image"]
    if counts.num_matched or (not counts.num_names and matches.counts["text"].num_matched):
        return
    keys = cache.samples().select("key").head(1).collect()["key"].to_list()
    first = counts.unknown[:1] or matches.counts["text"].unknown[:1]
    raise SourceError(
        f"no name of {source.location} is in {cache.root}: its first is {first[0] if first else 'none'!r}, "
        f"the first key of the cache is {keys[0] if keys else 'none'!r}; name the column of keys with "
        "--embedding-key"
    )


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _few(names: Sequence[str], count: int) -> str:
    shown = ", ".join(repr(name) for name in names)
    return shown if count <= len(names) else f"{shown}, ..."
