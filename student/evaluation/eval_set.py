"""The eval set: images of a split, their captions, and the prompts of the classes.

Shape letters in this file:
    N = images, M = texts, P = pairs of an image with its caption, Q = prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...errors import SettingError
from ...store.cache import Cache
from ..data.corpus import Corpus

Split = Literal["val", "train", "all"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """The images and texts that a model is evaluated on, by their positions."""

    picture_N: NDArray[np.int64]
    """(N,) equal for images of one picture."""

    image_P: NDArray[np.int64]
    """(P,) the image of each pair. A pair is repeated in each of its languages."""

    text_P: NDArray[np.int64]
    """(P,) the text of each pair."""

    lang_P: NDArray[np.int32]
    """(P,) position in langs of each pair."""

    langs: tuple[str | None, ...]
    """Languages of captions; None: captions without a language."""

    label_N: NDArray[np.int64]
    """(N,) class of each image; -1 without a label or for a label without prompts."""

    class_Q: NDArray[np.int64]
    """(Q,) class of each prompt."""

    prompt_Q: NDArray[np.int64]
    """(Q,) the text of each prompt."""

    lang_Q: tuple[str | None, ...]
    """Language of each prompt."""

    num_labelled: int
    """Images with a label, with or without prompts for it."""

    unprompted: tuple[str, ...]
    """Labels of these images without prompts, sorted."""

    has_prompts: bool
    """Whether there are any prompts, of these labels or of others."""

    @property
    def num_captioned(self) -> int:
        """Number of images with a caption."""
        return len(np.unique(self.image_P))

    @property
    def num_captions(self) -> int:
        """Number of different captions."""
        return len(np.unique(self.text_P))

    def captions(self) -> NDArray[np.int64]:
        """Return the positions of the captions in text_rows_M, ascending."""
        return np.unique(self.text_P)

    def shares(
        self, is_of_P: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return image, text and weight of each pair, once; the weights of a text add up to 1.

        Args:
            is_of_P: which pairs to take; None: all.
        """
        pairs = np.stack([self.image_P, self.text_P])
        pairs = np.unique(pairs if is_of_P is None else pairs[:, is_of_P], axis=1)
        return pairs[0], pairs[1], 1 / np.bincount(pairs[1])[pairs[1]]


@dataclass(frozen=True, kw_only=True)
class CacheEvalSet(EvalSet):
    """The images and texts of a cache that a model is evaluated on."""

    split: Split
    num_split_images: int
    """Images of the split; rows_N may be a random sample of them."""

    rows_N: NDArray[np.int64]
    """(N,) rows of the cache, ascending."""

    sha256_N: NDArray[np.uint8]
    """(N, 32) SHA-256 of the bytes that the teacher saw."""

    text_rows_M: NDArray[np.int64]
    """(M,) text_rows of the captions and the prompts, ascending, each once."""

    num_texts_in_train: int | None
    """Captions that are also captions of training images; None unless split is val."""


def choose_eval_set(
    cache: Cache, corpus: Corpus, *, split: Split = "val", max_images: int = 10_000, seed: int = 0
) -> CacheEvalSet:
    """Return the images of a split, or a random sample of them, and all their texts.

    Args:
        cache: the cache.
        corpus: from read_corpus, train and val.
        split: images to take.
        max_images: most images.
        seed: random seed of the sample.

    Raises:
        SettingError: the split has no image, or a setting is out of range.
    """
    if split not in SPLITS:
        raise SettingError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if max_images < 1 or seed < 0:
        raise SettingError(
            f"samples must be at least 1 and seed at least 0, got {max_images} and {seed}"
        )
    is_in_N = {"val": corpus.is_val_N, "train": ~corpus.is_val_N}.get(split)
    of_split = np.arange(len(corpus)) if is_in_N is None else np.flatnonzero(is_in_N)
    if len(of_split) == 0:
        raise SettingError(
            f"split {split} is empty: it has none of the {len(corpus):,} images of {cache.root}; "
            "change --val-share, or use --split all"
        )
    chosen = of_split
    if len(of_split) > max_images:
        draw = np.random.default_rng(seed)
        chosen = np.sort(draw.choice(of_split, max_images, replace=False))
    mask_N = np.zeros(len(corpus), np.bool_)
    mask_N[chosen] = True
    images = corpus.select(mask_N)
    captions = images.text_rows
    row_P, text_row_P, lang_P = _captions(cache, images)
    in_train = None
    if split == "val":
        of_train = corpus.select(~corpus.is_val_N).text_rows
        in_train = int(np.isin(captions, of_train).sum())
    labels_N = _labels(cache, images.rows_N)
    prompt_rows, classes = class_fields(labels_N, _prompts(cache, images))
    text_rows_M = np.union1d(captions, prompt_rows)
    return CacheEvalSet(
        split=split,
        num_split_images=len(of_split),
        rows_N=images.rows_N,
        sha256_N=images.sha256_N,
        picture_N=images.picture_N,
        text_rows_M=text_rows_M,
        image_P=np.searchsorted(images.rows_N, row_P).astype(np.int64),
        text_P=np.searchsorted(text_rows_M, text_row_P).astype(np.int64),
        lang_P=lang_P,
        langs=images.langs,
        prompt_Q=np.searchsorted(text_rows_M, prompt_rows),
        num_texts_in_train=in_train,
        **classes,
    )


def _captions(
    cache: Cache, corpus: Corpus
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Return row, text_row and position in corpus.langs of every caption that has a target, by row.

    A corpus has a text of an image once; here it is repeated in each of its languages.
    """
    captions = cache.captions().filter(pl.col("row").is_in(corpus.rows_N.tolist()))
    captions = captions.select("row", "text_row", "lang").collect()
    stands = pl.Series("text_row", corpus.one_text[captions["text_row"].to_numpy()], pl.Int64)
    langs = pl.Series("lang", [corpus.langs.index(lang) for lang in captions["lang"]], pl.Int32)
    captions = (
        captions.with_columns(stands, langs)
        .unique(maintain_order=True)
        .sort("row", maintain_order=True)
    )
    captions = captions.filter(
        pl.Series(np.isin(captions["text_row"].to_numpy(), corpus.text_rows))
    )
    return (
        captions["row"].to_numpy().astype(np.int64),
        captions["text_row"].to_numpy(),
        captions["lang"].to_numpy(),
    )


def _labels(cache: Cache, rows_N: NDArray[np.int64]) -> list[str | None]:
    """Return the label of each image."""
    samples = cache.samples().filter(pl.col("row").is_in(rows_N.tolist()))
    return samples.sort("row").select("label").collect()["label"].to_list()


def class_fields(
    labels_N: Sequence[str | None], prompts: pl.DataFrame
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return the text_row of each prompt that is needed, and the fields of an EvalSet about classes.

    Args:
        labels_N: label of each image.
        prompts: text_row, label and lang of every prompt, without repeated texts.
    """
    classes = _classes(prompts)
    label_N = np.array(
        [-1 if label is None else classes.get(label, -1) for label in labels_N], np.int64
    )
    has_prompts = not prompts.is_empty()
    if (label_N < 0).all():
        prompts = prompts.clear()  # so that no text is embedded in vain
    class_of_prompt = pl.Series("label", [classes[x] for x in prompts["label"]], pl.Int64)
    prompts = prompts.with_columns(class_of_prompt).unique(maintain_order=True)
    return prompts["text_row"].to_numpy(), {
        "label_N": label_N,
        "class_Q": prompts["label"].to_numpy().astype(np.int64),
        "lang_Q": tuple(prompts["lang"].to_list()),
        "num_labelled": sum(label is not None for label in labels_N),
        "unprompted": tuple(sorted({x for x in labels_N if x is not None} - classes.keys())),
        "has_prompts": has_prompts,
    }


def _classes(prompts: pl.DataFrame) -> dict[str, int]:
    """Return the class of each label.

    Labels with the same texts, such as Dog and dog, are one class: they would tie in every image.
    """
    texts = prompts.group_by("label").agg(pl.col("text_row").unique().sort()).sort("label")
    classes: dict[tuple[int, ...], int] = {}
    return {
        label: classes.setdefault(tuple(text_rows), len(classes))
        for label, text_rows in texts.iter_rows()
    }


def _prompts(cache: Cache, corpus: Corpus) -> pl.DataFrame:
    """Return text_row, label and lang of every prompt, without repeated texts."""
    prompts = cache.table("prompts").select("text_row", "label", "lang").collect()
    stands = pl.Series("text_row", corpus.one_text[prompts["text_row"].to_numpy()], pl.Int64)
    return prompts.with_columns(stands).unique(maintain_order=True)
