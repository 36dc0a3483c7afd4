"""What a corpus is: counts, sizes, captions, languages, duplicates, and what was rejected."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..formatting import format_bytes, format_count
from ..neighbors.duplicates import DuplicatesConfig, find_duplicates
from ..neighbors.report import Report
from ..progress import TaskProgress
from ..store.cache import Cache
from ..store.describe import describe
from .charts import Chart, histogram
from .config import FullReportConfig
from .section import Section, Table, count_table

_MOST_SEEN = 1 << 22
"""Images whose sizes and hashes are read, some 200 MB; of more, random units."""

_MOST_NAMES = 12
_TICKS = (8, 16, 32, 64, 96, 128, 160, 224, 288, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
_QUANTILES = (0.05, 0.5, 0.95)


def corpus_section(
    cache: Cache,
    teacher: str | None,
    rows_N: NDArray[np.int64],
    config: FullReportConfig,
    progress: TaskProgress,
) -> Section:
    """Return the part about a corpus.

    Args:
        cache: the cache.
        teacher: whose images are looked at; None: the cache has none yet.
        rows_N: a sample of the images.
        config: settings.
        progress: shows how far it is.
    """
    found = describe(cache)
    seen = _seen(cache, teacher, config.seed) if teacher else _no_images()
    copies = _copies(seen)
    captions = cache.captions().filter(pl.col("row").is_in(rows_N.tolist()))
    lengths = captions.join(cache.texts(), on="text_row").select(pl.col("text").str.len_chars())
    per_image = np.zeros(len(rows_N), np.int64)
    counted = captions.group_by("row").len().collect()
    per_image[np.searchsorted(rows_N, counted["row"].to_numpy())] = counted["len"].to_numpy()
    near = _near_duplicates(cache, teacher, config, progress) if teacher else None
    reasons = _reasons(cache)
    values: dict[str, Any] = {
        **found,
        "sizes": _size_numbers(seen),
        "copies": copies,
        "sample": {
            "images": len(rows_N),
            "captions_per_image": float(per_image.mean()) if len(per_image) else None,
            "without_caption": int((per_image == 0).sum()),
        },
        "near_duplicates": None if near is None else dict(near.values),
        "rejected": reasons,
    }
    return Section(
        name="corpus",
        title="The corpus",
        facts=list(_facts(found, values)),
        notes=list(_notes(found, seen, near)),
        charts=list(_charts(seen, per_image, lengths.collect().to_series().to_numpy())),
        tables=list(_tables(cache, found, reasons)),
        groups=() if near is None else near.groups,
        groups_note="The largest clusters of near duplicates.",
        values=values,
    )


def _no_images() -> pl.DataFrame:
    return pl.DataFrame(schema={"width": pl.Int32, "height": pl.Int32, "sha256": pl.Binary})


def _seen(cache: Cache, teacher: str, seed: int) -> pl.DataFrame:
    """Return width, height and sha256 of the images as a teacher embedded them."""
    units = np.random.default_rng(seed).permutation(
        sorted(cache.commits(teacher).units_of("image"))
    )
    frames, num_images = [_no_images()], 0
    for unit in units.tolist():
        if num_images >= _MOST_SEEN:
            break
        frames.append(cache.seen(teacher, unit).select("width", "height", "sha256").drop_nulls())
        num_images += frames[-1].height
    return pl.concat(frames)


def _copies(seen: pl.DataFrame) -> int:
    """Return how many images have the bytes of another one, without the first of each."""
    return seen.height - seen["sha256"].n_unique() if seen.height else 0


def _size_numbers(seen: pl.DataFrame) -> dict[str, Any] | None:
    """Return quantiles of the sizes, as JSON values; None without images."""
    if not seen.height:
        return None
    width, height = seen["width"].to_numpy(), seen["height"].to_numpy()
    columns = {"short_side": np.minimum(width, height), "aspect": width / height}
    return {"images": seen.height} | {
        name: dict(
            zip(("p5", "median", "p95"), np.quantile(values, _QUANTILES).tolist(), strict=True)
        )
        for name, values in columns.items()
    }


def _near_duplicates(
    cache: Cache, teacher: str, config: FullReportConfig, progress: TaskProgress
) -> Report:
    progress.start("comparing images", min(config.samples, cache.num_samples))
    return find_duplicates(
        DuplicatesConfig(
            cache=cache.root,
            teacher=teacher,
            corpus_roots=config.corpus_roots,
            sample=config.samples,
            seed=config.seed,
            limit=max(1, config.examples // 2),
            members=12,
        ),
        on_rows=progress.advance,
    )


def _reasons(cache: Cache) -> list[dict[str, Any]]:
    """Return the reasons of rejections and of problems with counts, the most frequent first."""
    rejected = cache.rejected().select(
        pl.format("rejected by {}: {}", "teacher", "reason").alias("reason"),
        pl.coalesce("key", pl.col("row").cast(pl.String)).alias("first"),
    )
    problems = cache.table("problems").select(
        pl.format("not read: {}", "reason").alias("reason"), pl.col("place").alias("first")
    )
    both = pl.concat([rejected, problems]).group_by("reason", maintain_order=True)
    counted = both.agg(pl.len().alias("count"), pl.col("first").first())
    return counted.sort("count", "reason", descending=[True, False]).collect().to_dicts()


def _facts(found: dict[str, Any], values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "cache", found["cache"]
    sources = [
        f"{s['name']}: {s['location']}" if s["name"] else s["location"] for s in found["sources"]
    ]
    yield (
        "sources",
        ", ".join(sources[:3]) + (f" and {len(sources) - 3:,} more" if sources[3:] else ""),
    )
    yield (
        "images",
        f"{found['samples']:,}" + (f" in {found['views']} views" if found["views"] > 1 else ""),
    )
    yield "captions", f"{found['captions']:,}, {found['texts']:,} unique texts"
    if values["sample"]["captions_per_image"] is not None:
        sample = values["sample"]
        yield (
            "captions of an image",
            f"{sample['captions_per_image']:.2f} on average, none for {sample['without_caption']:,} of "
            f"{sample['images']:,}",
        )
    if found["labels"]:
        yield "labels", f"{found['labels']:,}"
    sizes = values["sizes"]
    if sizes:
        side, aspect = sizes["short_side"], sizes["aspect"]
        yield (
            "shorter side",
            f"{side['median']:,.0f} px, 90 % of images {side['p5']:,.0f} to {side['p95']:,.0f}",
        )
        yield (
            "width / height",
            f"{aspect['median']:.2f}, 90 % of images {aspect['p5']:.2f} to {aspect['p95']:.2f}",
        )
        yield (
            "equal bytes",
            f"{format_count(values['copies'], 'copy')} among {sizes['images']:,} images",
        )
    rejected = sum(reason["count"] for reason in values["rejected"])
    yield "rejected or not read", f"{rejected:,}"
    if (pixels := found["pixels"]) is not None:
        yield (
            "kept pixels",
            f"{pixels['images']:,} images, at most {pixels['short_side']} px on the short side, "
            f"{format_bytes(pixels['num_bytes'])}",
        )


def _notes(found: dict[str, Any], seen: pl.DataFrame, near: Report | None) -> Iterator[str]:
    if near is None:
        yield "no teacher has embedded anything yet; run the same siglip2-cache build again"
    else:
        yield from near.summary
    if 0 < seen.height < found["samples"]:
        yield f"sizes and equal bytes are those of {seen.height:,} of {found['samples']:,} images"


def _charts(
    seen: pl.DataFrame, per_image: NDArray[np.int64], length: NDArray[np.int64]
) -> Iterator[Chart]:
    if seen.height:
        width = seen["width"].to_numpy().astype(np.float64)
        height = seen["height"].to_numpy().astype(np.float64)
        side = np.minimum(width, height)
        edges = np.geomspace(max(1, side.min() * 0.97), side.max() * 1.03, 41)
        ticks = [t for t in _TICKS if edges[0] <= t <= edges[-1]]
        yield Chart(
            "Shorter side",
            "histogram of the shorter sides of the images, in pixels",
            histogram(side, edges, label="pixels", is_log=True, ticks=ticks),
        )
        yield Chart(
            "Aspect ratio",
            "histogram of width divided by height",
            histogram(
                width / height,
                np.geomspace(0.2, 5, 42),
                label="width / height",
                is_log=True,
                ticks=(0.25, 0.5, 0.75, 1, 1.33, 2, 4),
            ),
        )
    if len(per_image):
        most = max(1, int(np.quantile(per_image, 0.995)))
        edges = np.arange(most + 2) - 0.5
        ticks = sorted({*range(0, most + 1, max(1, most // 6))})
        yield Chart(
            "Captions of an image",
            "histogram of the number of captions of an image",
            histogram(per_image, edges, label="captions", ticks=ticks),
        )
    if len(length):
        edges = np.linspace(0, max(10, float(np.quantile(length, 0.995))), 41)
        yield Chart(
            "Length of a caption",
            "histogram of the lengths of the captions, in characters",
            histogram(length, edges, label="characters"),
        )


def _tables(cache: Cache, found: dict[str, Any], reasons: list[dict[str, Any]]) -> Iterator[Table]:
    if found["languages"].keys() - {"none"}:
        yield count_table("Languages", "language", found["languages"], most=_MOST_NAMES)
    if found["labels"]:
        counted = cache.samples().drop_nulls("label").group_by("label").len().collect()
        yield count_table("Labels", "label", dict(counted.iter_rows()), most=_MOST_NAMES)
    if reasons:
        shown = reasons[:_MOST_NAMES]
        yield Table(
            heading="Rejected, and not read",
            rows=[
                ["reason", "first", "count"],
                *([each["reason"], each["first"] or "", f"{each['count']:,}"] for each in shown),
            ],
            num_more=len(reasons) - len(shown),
        )
