"""The images, views and captions of each step of a training, computed for any step directly.

Every rank computes the global batch, so it knows what the others have; rank r takes slice r of it.

Shape letters in this file:
    N = images of the global batch, views included    M = different texts drawn for them
    I = images of the corpus                          S = ids a batch (N / views_per_step)
    C = captions drawn for an image
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import SettingError
from .corpus import Corpus, expand_ranges
from .random_draws import LARGEST_SEED, draw_captions, draw_views, epoch_generator


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadGroups:
    """Images that are read together: those of a row group of Parquet, or of a part of a tar."""

    number_I: NDArray[np.int64]
    """(I,) number of each image's group; -1 for an image in a file of its own."""

    num_open: int
    """Groups that an epoch takes images from at a time: enough to mix, few enough to be in memory."""

    in_order: bool
    """Whether the images of a group must come in the order of the corpus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalBatch:
    """The global batch of one step."""

    step: int
    epoch: int

    positions_N: NDArray[np.int64]
    """(N,) positions in the corpus; the views of an image are adjacent."""

    views_N: NDArray[np.int64]
    """(N,) view of each image."""

    text_rows_NC: NDArray[np.int64]
    """(N, C) text_rows of each image's drawn captions, the same for all its views; -1 for none."""

    global_text_rows_M: NDArray[np.int64]
    """(M,) the different ones, in order of appearance."""

    caption_NC: NDArray[np.int64]
    """(N, C) positions of each image's captions in global_text_rows_M; -1 for none."""

    text_bounds: NDArray[np.int64]
    """(world_size + 1,) rank r encodes texts text_bounds[r] to below text_bounds[r + 1]: those that appear
    first in its slice of the images."""


class Sampler:
    """Draws the batches of a training: a pure function of the seed and the step."""

    def __init__(
        self,
        corpus: Corpus,
        *,
        global_batch_size: int,
        super_batch: int = 1,
        views_per_step: int = 1,
        captions_per_image: int = 1,
        num_views: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        groups: ReadGroups | None = None,
    ) -> None:
        """Check the settings.

        Args:
            corpus: the train split.
            global_batch_size: images that a step reads over all ranks; each view counts as one.
            super_batch: batches in these, of which a selection keeps one. Errors name the size of one.
            views_per_step: different views of each image in a step; they share their captions.
            captions_per_image: different captions of each image in a step, where it has so many.
            num_views: views of each image in the cache.
            seed: 0 to 2**63 - 1.
            rank: rank of this process.
            world_size: number of processes.
            groups: which images are read together; None: each is read alone. An epoch takes images from
                a few groups at a time, so that a group is read once; images of one file are therefore
                mixed less than others. In a batch the images of a group are adjacent, so that few ranks
                read the same group.

        Raises:
            SettingError: the settings contradict each other, or the corpus is smaller than a batch.
        """
        _check(global_batch_size, super_batch, views_per_step, num_views, seed, rank, world_size)
        self.corpus = corpus
        self.global_batch_size = global_batch_size
        self.views_per_step = views_per_step
        self._captions_per_image = captions_per_image
        self.num_views = num_views
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._groups = groups
        self._ids = global_batch_size // views_per_step
        self._order: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None
        if len(corpus) < self._ids:
            views = f" ({views_per_step} views of each image)" if views_per_step > 1 else ""
            taken = f"a batch takes {self._ids:,} images{views}"
            if super_batch > 1:
                batches = f"{super_batch} batches, of which select learnability keeps one"
                taken = f"a step reads {self._ids:,} images{views} ({batches})"
            largest = len(corpus) // (world_size * super_batch) * world_size * views_per_step
            raise SettingError(
                f"{taken}, but there are {len(corpus):,} to train on; global_batch_size "
                f"{global_batch_size // super_batch:,} may be at most {largest:,}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the corpus; the rest of it is dropped."""
        return len(self.corpus) // self._ids

    @property
    def images_per_rank(self) -> int:
        """Images of each rank in a step, before skipping."""
        return self.global_batch_size // self.world_size

    @property
    def rank_slice(self) -> slice:
        """This rank's slice of the images of the global batch."""
        return slice(self.rank * self.images_per_rank, (self.rank + 1) * self.images_per_rank)

    @property
    def open_groups(self) -> int:
        """Groups that this rank takes images from at a time: its share, and those that two ranks share.

        Groups in order are counted for all ranks: opening one again means reading it from its start.
        """
        if self._groups is None:
            return 1
        num_open = self._groups.num_open
        if self._groups.in_order:
            return num_open
        return min(num_open, -(-num_open // self.world_size) + 2)

    def global_batch(self, step: int) -> GlobalBatch:
        """Return the global batch of a step, counted from 0 over all epochs."""
        epoch, number = divmod(step, self.steps_per_epoch)
        own = slice(number * self._ids, (number + 1) * self._ids)
        order_I, lane_I = self._order_of(epoch)
        ids_S = _with_adjacent_groups(order_I[own], lane_I[own])
        rows_S = self.corpus.rows_N[ids_S]
        views_SV = draw_views(
            self.seed, epoch, rows_S, num_views=self.num_views, num_drawn=self.views_per_step
        )
        text_rows_NC = np.repeat(self._texts_of(epoch, ids_S, rows_S), self.views_per_step, axis=0)
        texts_M, first_M, caption_NC = _in_order_of_appearance(text_rows_NC)
        borders = np.arange(self.world_size + 1) * self.images_per_rank * self._captions_per_image
        return GlobalBatch(
            step=step,
            epoch=epoch,
            positions_N=np.repeat(ids_S, self.views_per_step),
            views_N=views_SV.reshape(-1),
            text_rows_NC=text_rows_NC,
            global_text_rows_M=texts_M,
            caption_NC=caption_NC,
            text_bounds=np.searchsorted(first_M, borders).astype(np.int64),
        )

    def _texts_of(
        self, epoch: int, ids_S: NDArray[np.int64], rows_S: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the text_rows drawn for each image, (S, C); -1 where it has no more captions."""
        corpus = self.corpus
        start_S, end_S = corpus.caption_start[ids_S], corpus.caption_start[ids_S + 1]
        weight = corpus.caption_weight
        drawn_SC = draw_captions(
            self.seed,
            epoch,
            rows_S,
            end_S - start_S,
            num_drawn=self._captions_per_image,
            weight_C=None if weight is None else weight[expand_ranges(start_S, end_S)[1]],
        )
        text_rows_SC = np.full(drawn_SC.shape, -1, np.int64)
        has_SC = drawn_SC >= 0
        text_rows_SC[has_SC] = corpus.caption_text_row[(start_S[:, None] + drawn_SC)[has_SC]]
        return text_rows_SC

    def _order_of(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the order of an epoch and the lanes, see epoch_order; caches the last epoch."""
        kept = self._order
        if kept is None or kept[0] != epoch:
            kept = epoch, *epoch_order(len(self.corpus), self._groups, self.seed, epoch)
            self._order = kept
        return kept[1:]


def epoch_order(
    num_images: int, groups: ReadGroups | None, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of all images in the order of an epoch, (I,), and the lane of each, (I,).

    The choice of groups and the order of their images are random, but for the order within a group if that
    must be kept. Images without a group may be anywhere, and have lane -1. Of the groups that images are
    taken from at a time each has another lane.
    """
    draw = epoch_generator(seed, epoch)
    order_I = draw.permutation(num_images)
    lane_I = np.full(num_images, -1, np.int64)
    if groups is not None and (groups.number_I >= 0).any():
        is_grouped_I = groups.number_I[order_I] >= 0
        grouped = np.flatnonzero(groups.number_I >= 0)
        order_I[is_grouped_I], lane_I[is_grouped_I] = _by_groups(grouped, groups, draw)
    return order_I, lane_I


def _by_groups(
    grouped: NDArray[np.int64], groups: ReadGroups, draw: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of images that have a group, a few groups at a time, and their lanes."""
    names, group = np.unique(groups.number_I[grouped], return_inverse=True)
    rank = draw.permutation(len(names))[group]  # position of each image's group in random order
    turns = np.lexsort((draw.random(len(grouped)), rank // groups.num_open))  # images at random
    if not groups.in_order:
        return grouped[turns], rank[turns] % groups.num_open
    turns_by_group = turns[np.argsort(rank[turns], kind="stable")]
    slots = np.empty(len(grouped), np.int64)
    slots[turns] = np.arange(len(grouped))
    order = np.empty(len(grouped), np.int64)
    order[slots[turns_by_group]] = grouped[np.argsort(rank, kind="stable")]
    return order, rank[turns]  # a group is finished before others take its place


def _with_adjacent_groups(ids_S: NDArray[np.int64], lane_S: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the images of a batch with those of each lane together; those of none stay in place."""
    result_S, has_lane_S = ids_S.copy(), lane_S >= 0
    result_S[has_lane_S] = ids_S[has_lane_S][np.argsort(lane_S[has_lane_S], kind="stable")]
    return result_S


def _in_order_of_appearance(
    text_rows_NC: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the different texts, the first position of each, and each image's texts (-1: none).

    Positions count the captions of all images.
    """
    captioned = np.flatnonzero(text_rows_NC >= 0)
    texts, first, which = np.unique(
        text_rows_NC.ravel()[captioned], return_index=True, return_inverse=True
    )
    order_M = np.argsort(first)
    column = np.empty(len(texts), np.int64)
    column[order_M] = np.arange(len(texts))
    caption_NC = np.full(text_rows_NC.shape, -1, np.int64)
    caption_NC.ravel()[captioned] = column[which]
    return texts[order_M], captioned[first[order_M]], caption_NC


def _check(
    global_batch_size: int,
    super_batch: int,
    views_per_step: int,
    num_views: int,
    seed: int,
    rank: int,
    world_size: int,
) -> None:
    if not 1 <= views_per_step <= num_views:
        raise SettingError(
            f"views_per_step must be 1 to {num_views}, the number of views of each image in the cache, "
            f"got {views_per_step}"
        )
    unit = world_size * views_per_step
    if global_batch_size < 1 or global_batch_size % unit:
        batches = f", super_batch {super_batch}" if super_batch > 1 else ""
        raise SettingError(
            f"global_batch_size must be a multiple of {unit // math.gcd(unit, super_batch)} ({world_size} "
            f"processes x {views_per_step} views per step{batches}), got {global_batch_size // super_batch}"
        )
    if not 0 <= seed <= LARGEST_SEED:
        raise SettingError(f"seed must be 0 to {LARGEST_SEED}, got {seed}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
