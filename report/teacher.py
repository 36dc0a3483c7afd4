"""What a teacher thinks of a corpus: the probabilities of captions, and a map of the images.

Shape letters in this file: N = images, M = texts, D = embedding width, P = pairs of an image and a caption.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..neighbors.items import image_items, text_items
from ..neighbors.mismatched import with_probability
from ..neighbors.report import Group
from ..store.cache import Cache
from ..store.format.layout import MODALITIES, Modality
from ..student.evaluation.calibration import other_pairs
from ..student.evaluation.embeddings import Embeddings, teacher_embeddings
from ..student.evaluation.metrics import Rows, pair_cosines, sigmoid
from .charts import Chart, Colors
from .config import FullReportConfig
from .embedding_map import EmbeddingMap, map_images
from .section import Section

_TICKS = (1e-6, 1e-4, 1e-2, 0.5, 0.99, 0.9999)
_MOST_LOGIT = 18.0


def sample_rows(cache: Cache, teacher: str | None, config: FullReportConfig) -> NDArray[np.int64]:
    """Return a random sample of the images that a teacher embedded, ascending; empty without a teacher."""
    if teacher is None:
        return np.empty(0, np.int64)
    rows_N = cache.image_targets(teacher).available_rows()
    if len(rows_N) > config.samples:
        draw = np.random.default_rng(config.seed)
        rows_N = np.sort(draw.choice(rows_N, config.samples, replace=False))
    return rows_N


def teacher_section(
    cache: Cache, teacher: str, rows_N: NDArray[np.int64], config: FullReportConfig
) -> Section:
    """Return the part about one teacher.

    Args:
        cache: the cache.
        teacher: its name.
        rows_N: a sample of the images, ascending.
        config: settings.
    """
    lines = cache.captions().filter(pl.col("row").is_in(rows_N.tolist())).collect()
    pairs = lines.select("row", "text_row").unique(maintain_order=True)
    text_rows_M = np.unique(pairs["text_row"].to_numpy())
    embedded = teacher_embeddings(cache, teacher, rows_N, text_rows_M)
    image_P = np.searchsorted(rows_N, pairs["row"].to_numpy())
    text_P = np.searchsorted(text_rows_M, pairs["text_row"].to_numpy())
    own_P = pair_cosines(embedded.images_ND, embedded.texts_MD, image_P, text_P)
    is_there_P = np.isfinite(own_P)
    image_P, text_P, own_P = image_P[is_there_P], text_P[is_there_P], own_P[is_there_P]
    other = other_pairs(image_P, text_P, np.arange(len(rows_N)), seed=config.seed)
    other_P = pair_cosines(embedded.images_ND, embedded.texts_MD, *other)
    record = cache.teacher(teacher)
    scale, bias = math.exp(record.logit_scale), record.logit_bias
    own_P, other_P = (
        scale * cosine_P[np.isfinite(cosine_P)] + bias for cosine_P in (own_P, other_P)
    )
    embedded_rows = {
        m: [_num_embedded(cache, teacher, m), cache.manifest.count(m)] for m in MODALITIES
    }
    values = {
        "embedded": embedded_rows,
        "images": len(rows_N),
        "scale": scale,
        "bias": bias,
        "own": _pair_numbers(own_P),
        "other": _pair_numbers(other_P),
    }
    found = _map(cache, embedded, rows_N, lines)
    if found is not None:
        values["map"] = {"images": found.num_images, "explained": list(found.explained)}
    order_P = np.argsort(own_P, kind="stable")
    _, first_N = np.unique(image_P[order_P], return_index=True)  # the worst caption of each image
    worst = order_P[np.sort(first_N)[: config.examples]]
    return Section(
        name="teachers",
        title=f"The teacher: {teacher}",
        facts=list(_facts(values, record.source, record.embed_dim, record.encoding.name)),
        notes=[] if len(own_P) else ["probabilities need images with a caption; there are none"],
        charts=[_probabilities(own_P, other_P)] if len(own_P) else [],
        map=found,
        groups=_least_likely(cache, embedded, rows_N, text_rows_M, image_P[worst], text_P[worst]),
        groups_note="The captions of this sample that the teacher finds least likely for their image, each "
        "with the caption of the sample that it prefers.",
        values={teacher: values},
    )


def _num_embedded(cache: Cache, teacher: str, modality: Modality) -> int:
    units = cache.commits(teacher).units_of(modality).values()
    return sum(unit.num_rows - len(unit.rejected) for unit in units)


def _pair_numbers(logit_P: Rows) -> dict[str, Any] | None:
    if not len(logit_P):
        return None
    return {
        "pairs": len(logit_P),
        "median_probability": float(np.median(sigmoid(logit_P))),
        "mean_probability": float(sigmoid(logit_P).mean()),
        "below_half": int((logit_P < 0).sum()),
    }


def _facts(
    values: dict[str, Any], source: str, embed_dim: int, encoding: str
) -> Iterator[tuple[str, str]]:
    yield "checkpoint", source
    (images, all_images), (texts, all_texts) = values["embedded"].values()
    yield "embedded", f"{images:,} of {all_images:,} images, {texts:,} of {all_texts:,} texts"
    yield "embedding", f"{embed_dim:,} x {encoding}"
    yield "logits", f"scale {values['scale']:.2f}, bias {values['bias']:.2f}"
    for name, words in (("own", "own captions"), ("other", "other captions")):
        numbers = values[name]
        if numbers is not None:
            above = numbers["pairs"] - numbers["below_half"]
            yield (
                words,
                f"probability {numbers['median_probability']:.2g} (median); {above:,} of "
                f"{numbers['pairs']:,} pairs above 0.5",
            )


def _probabilities(own_P: Rows, other_P: Rows) -> Chart:
    edges = np.linspace(-_MOST_LOGIT, _MOST_LOGIT, 61)
    shares = [
        np.histogram(np.clip(logit_P, edges[0], edges[-1]), edges)[0] / max(1, len(logit_P))
        for logit_P in (own_P, other_P)
    ]

    def plot(axes: Any, colors: Colors) -> None:
        for share, color, name in zip(
            shares, colors.series, ("own captions", "captions of other images"), strict=False
        ):
            axes.stairs(share, edges, fill=True, color=color, alpha=0.65, label=name)
        axes.set_xticks([math.log(p / (1 - p)) for p in _TICKS], [f"{p:g}" for p in _TICKS])
        axes.set_xlabel("probability of a match; the ends include all beyond")
        axes.set_ylabel("share of the pairs")
        axes.legend()

    return Chart(
        "Probability of captions",
        "histograms of the teacher's probability that an image and a caption match, for own captions and "
        "for those of other images",
        plot,
    )


def _map(
    cache: Cache, embedded: Embeddings, rows_N: NDArray[np.int64], lines: pl.DataFrame
) -> EmbeddingMap | None:
    """Return a map coloured by label, else by language, else by source, whichever has several values."""
    samples = cache.samples().filter(pl.col("row").is_in(rows_N.tolist()))
    frame = samples.select("row", "label", "file").sort("row").collect()
    langs = lines.group_by("row").agg(pl.col("lang").drop_nulls().first())
    is_wanted = pl.col("file").is_in(frame["file"].unique().to_list())
    files = cache.table("files").filter(is_wanted).select("file", "source").collect()
    frame = frame.join(langs, on="row", how="left", maintain_order="left")
    frame = frame.join(files, on="file", how="left", maintain_order="left")
    words = {"label": "label", "lang": "language of the first caption", "source": "source"}
    column = next((name for name in words if frame[name].drop_nulls().n_unique() > 1), None)
    groups = [""] * len(rows_N) if column is None else frame[column].to_list()
    there = np.flatnonzero(np.isfinite(embedded.images_ND).all(axis=1))
    return map_images(
        embedded.images_ND[there],
        rows_N[there],
        [groups[i] for i in there.tolist()],
        words[column] if column else "",
    )


def _least_likely(
    cache: Cache,
    embedded: Embeddings,
    rows_N: NDArray[np.int64],
    text_rows_M: NDArray[np.int64],
    image_P: NDArray[np.int64],
    text_P: NDArray[np.int64],
) -> list[Group]:
    """Return rows of an image, its caption, and the text of the sample that is nearest to it."""
    if not len(image_P):
        return []
    logit = embedded.logit
    assert logit is not None
    with np.errstate(invalid="ignore"):
        cosine_PM = embedded.images_ND[image_P] @ embedded.texts_MD.T
    best_P = np.nan_to_num(cosine_PM, nan=-np.inf).argmax(axis=1)
    images = image_items(cache, rows_N[image_P].tolist())
    texts = text_items(cache, text_rows_M[np.concatenate([text_P, best_P])].tolist())
    groups: list[Group] = []
    for i, (image, own, best) in enumerate(
        zip(image_P.tolist(), text_P.tolist(), best_P.tolist(), strict=True)
    ):
        items = [
            with_probability(
                texts[int(text_rows_M[text])], float(cosine_PM[i, text]), logit, remark
            )
            for text, remark in ((own, "own caption"), (best, "nearest text"))
        ]
        groups.append(
            Group(query=images[int(rows_N[image])], items=tuple(items[: 1 + (best != own)]))
        )
    return groups
