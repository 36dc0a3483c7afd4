"""Mismatched captions: the pairs of an image and its caption that the teacher scores lowest.

Shape letter in this file: P = pairs.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import SettingError
from ..store.cache import Cache, open_cache
from ..store.format.catalog import read_part
from ..store.search.exact import cosines, exact_neighbors
from .config import ReportConfig
from .items import image_items, own_text_rows, text_items
from .report import Group, Item, Report

_PAIRS_AT_ONCE = 32_768
"""Pairs read at a time: at most 151 MB of memory maps for width 1152, released before the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MismatchedConfig(ReportConfig):
    """Settings of find_mismatched."""

    limit: int = 20
    """Most pairs in the report, the least likely first."""

    def num_rows_read(self) -> int:
        """Return the number of pairs of an image and a caption."""
        generations = open_cache(self.cache).manifest.generations
        return sum(generation.num_new_captions for generation in generations)


@dataclass(slots=True)
class _Worst:
    """The pairs of lowest cosine so far, and sums over all pairs."""

    limit: int
    num_pairs: int = 0
    num_unlikely: int = 0
    """Pairs with a probability below 0.5."""

    cosine_sum: float = 0.0
    lines: pl.DataFrame | None = None

    def add(self, lines: pl.DataFrame, cosine_P: NDArray[np.float64], even: float) -> None:
        self.num_pairs += len(cosine_P)
        self.num_unlikely += int((cosine_P < even).sum())
        self.cosine_sum += float(cosine_P.sum())
        found = lines.select("row", "text_row").with_columns(cosine=cosine_P)
        found = found if self.lines is None else pl.concat([self.lines, found])
        self.lines = found.sort("cosine", "row", "text_row").head(self.limit)


def find_mismatched(
    config: MismatchedConfig, *, on_rows: Callable[[int], None] | None = None
) -> Report:
    """Return the images whose own caption scores lowest, each with the text nearest to it.

    The probability that a pair matches is ``sigmoid(exp(logit_scale) * cosine + logit_bias)`` with the
    teacher's scale and bias. Pairs without an embedding of image or text are left out and counted.

    Raises:
        SettingError: the teacher or the view cannot be used, or no image has a caption.
    """
    cache, teacher = config.open()
    record = cache.teacher(teacher)
    scale, bias = math.exp(record.logit_scale), record.logit_bias
    worst, num_left_out = _Worst(config.limit), 0
    for lines in _captions(cache):
        # New readers each time: dropping one releases its memory maps.
        images, has_image = cache.image_targets(teacher).read_masked(
            lines["row"].to_numpy(), config.view
        )
        texts, has_text = cache.text_targets(teacher).read_masked(lines["text_row"].to_numpy())
        cosine_P = cosines(images, texts)
        is_sound_P = has_image & has_text & np.isfinite(cosine_P)
        num_left_out += int((~is_sound_P).sum())
        worst.add(lines.filter(is_sound_P), cosine_P[is_sound_P], -bias / scale)
        if on_rows is not None:
            on_rows(len(lines))
    if worst.lines is None or worst.num_pairs == 0:
        raise SettingError(f"{cache.root} has no image with a caption, both embedded by {teacher}")
    left_out = f"; {num_left_out:,} without an embedding left out" if num_left_out else ""
    return Report(
        title="Mismatched captions",
        cache=cache.root,
        teachers=(teacher,),
        summary=(
            f"{worst.num_pairs:,} pairs of an image and its caption{left_out}; "
            f"mean cosine {worst.cosine_sum / worst.num_pairs:.4f}",
            f"{worst.num_unlikely:,} pairs have a probability below 0.5 with the teacher's scale "
            f"{scale:.2f} and bias {bias:.2f}; showing the {len(worst.lines):,} of lowest cosine",
        ),
        groups=tuple(_groups(config, cache, teacher, worst.lines, scale, bias)),
        values={
            "pairs": worst.num_pairs,
            "left_out": num_left_out,
            "below_half": worst.num_unlikely,
            "mean_cosine": worst.cosine_sum / worst.num_pairs,
        },
        groups_name="mismatched",
        items_name="texts",
    )


def _captions(cache: Cache) -> Iterator[pl.DataFrame]:
    for part in cache.manifest.parts("captions"):
        lines = read_part("captions", cache.part_file(part))
        pairs = lines.unique(
            ["row", "text_row"], maintain_order=True
        )  # a pair may have two languages
        yield from pairs.iter_slices(_PAIRS_AT_ONCE)


def _groups(
    config: MismatchedConfig,
    cache: Cache,
    teacher: str,
    worst: pl.DataFrame,
    scale: float,
    bias: float,
) -> Iterator[Group]:
    rows = worst["row"].to_numpy()
    views = np.full(len(rows), config.view)
    embeddings = cache.image_targets(teacher).read(rows, views)
    best = exact_neighbors(cache.text_targets(teacher), embeddings, 1)
    images = image_items(cache, rows.tolist(), view=config.view)
    texts = text_items(cache, [*worst["text_row"], *best.rows_QK[:, 0].tolist()])

    own = own_text_rows(cache, rows.tolist())

    def scored(text_row: int, cosine: float, remark: str) -> Item:
        return with_probability(texts[text_row], cosine, (scale, bias), remark)

    for (row, text_row, cosine), nearest, best_cosine in zip(
        worst.iter_rows(), best.rows_QK[:, 0].tolist(), best.cosine_QK[:, 0].tolist(), strict=True
    ):
        items = [scored(text_row, cosine, "own caption")]
        if nearest >= 0 and nearest != text_row:
            also = ", also its caption" if nearest in own[row] else ""
            items.append(scored(nearest, best_cosine, f"nearest text{also}"))
        yield Group(query=images[row], items=tuple(items))


def with_probability(item: Item, cosine: float, logit: tuple[float, float], remark: str) -> Item:
    """Return a text with its cosine, a remark, and the probability that it matches.

    Args:
        item: the text.
        cosine: cosine to the image.
        logit: (scale, bias) of the logits, the scale already exponentiated.
        remark: the first remark.
    """
    probability = _sigmoid(logit[0] * cosine + logit[1])
    return replace(
        item,
        cosine=cosine,
        remarks=(remark, f"p {probability:.2g}", *item.remarks),
        values={**item.values, "probability": probability},
    )


def _sigmoid(logit: float) -> float:
    small = math.exp(-abs(logit))
    return 1 / (1 + small) if logit >= 0 else small / (1 + small)
