"""Draws and the batches made of them: pure, uniform, the same for every rank and from any step on."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from siglip2_cache.errors import SettingError
from siglip2_cache.student.data.corpus import Corpus, starts_of
from siglip2_cache.student.data.random_draws import draw_captions, draw_views, draw_words
from siglip2_cache.student.data.sampler import GlobalBatch, ReadGroups, Sampler, epoch_order


def corpus_of(counts: list[int], *, num_texts: int = 40, seed: int = 0) -> Corpus:
    """A corpus of images with so many captions each, texts shared; rows are not positions."""
    draw = np.random.default_rng(seed)
    N = len(counts)
    texts = [np.sort(draw.choice(num_texts, count, replace=False)) for count in counts]
    return Corpus(
        rows_N=np.arange(N) * 3 + 7,
        sha256_N=draw.integers(0, 256, (N, 32), np.uint8),
        size_N2=np.zeros((N, 2), np.int32),
        picture_N=np.arange(N),
        is_val_N=np.zeros(N, np.bool_),
        caption_start=starts_of(np.array(counts)),
        caption_text_row=np.concatenate(texts).astype(np.int64),
        langs=(None,),
        one_text=np.arange(num_texts),
    )


GOLDEN_WORDS = ["0x46b73e79f0c37c00", "0x374327c63d0cc8a6", "0xb6e7f3e3e9122570"]
GOLDEN_VIEWS = [[1, 4], [4, 3], [1, 4]]
GOLDEN_CAPTIONS = [[0, 2, 0], [1, 0, 1], [2, 1, 2], [0, 3, 0], [2, 2, 1], [1, 0, 2]]
CORPUS = corpus_of([i % 4 for i in range(50)])


def sampler_of(corpus: Corpus = CORPUS, **settings: Any) -> Sampler:
    return Sampler(corpus, **{"global_batch_size": 12, "num_views": 5, "seed": 3, **settings})


def chi_square(counts: NDArray[np.int64]) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def assert_same(a: GlobalBatch, b: GlobalBatch) -> None:
    for name in GlobalBatch.__slots__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


# -- draws


def test_a_draw_depends_on_seed_row_and_purpose_and_on_nothing_else() -> None:
    rows = np.arange(1000)
    words = draw_words(1, rows, "view")
    np.testing.assert_array_equal(draw_words(1, rows[[5, 900, 5]], "view"), words[[5, 900, 5]])
    others = [
        draw_words(2, rows, "view"),
        draw_words(1, rows + 1000, "view"),
        draw_words(1, rows, "caption"),
        words,
    ]
    assert len(np.unique(np.concatenate(others))) == 4000
    counts = rows % 7
    drawn = draw_captions(1, 9, rows, counts)
    np.testing.assert_array_equal(draw_captions(1, 9, rows[::-7], counts[::-7]), drawn[::-7])


def test_draws_stay_what_they_were() -> None:
    # A checkpoint that resumes with a later version must meet the same views and captions.
    rows = np.array([0, 1, 10**12])
    assert [hex(word) for word in draw_words(0, rows, "caption")] == GOLDEN_WORDS
    assert draw_views(7, 1, rows, num_views=5, num_drawn=2).tolist() == GOLDEN_VIEWS
    assert [
        draw_captions(7, e, rows, rows % 5 + 3)[:, 0].tolist() for e in range(6)
    ] == GOLDEN_CAPTIONS


@pytest.mark.parametrize(("K", "V"), [(1, 1), (5, 1), (5, 2), (5, 5), (6, 4), (9, 7)])
def test_after_any_epoch_the_views_of_every_row_were_drawn_equally_often(K: int, V: int) -> None:
    N = 300
    drawn = np.zeros((N, K), np.int64)
    for epoch in range(3 * K):
        views = draw_views(3, epoch, np.arange(N) * 5, num_views=K, num_drawn=V)
        np.add.at(drawn, (np.arange(N)[:, None], views), 1)
        assert drawn.sum() == N * V * (epoch + 1)
        assert (drawn.max(axis=1) - drawn.min(axis=1)).max() <= 1
        assert drawn.min() == V * (epoch + 1) // K  # so all were drawn after ceil(K / V) epochs


def test_after_any_epoch_the_captions_of_every_row_were_drawn_equally_often() -> None:
    counts = np.arange(300) % 8
    drawn = np.zeros((300, 8), np.int64)
    has = counts > 0
    for epoch in range(30):
        captions = draw_captions(3, epoch, np.arange(300) * 5, counts)[:, 0]
        assert ((captions >= 0) == has).all()
        np.add.at(drawn, (np.flatnonzero(has), captions[has]), 1)
        for row, count in enumerate(counts.tolist()):
            assert drawn[row, count:].sum() == 0
            own = drawn[row, :count].tolist()
            assert not own or min(own) == (epoch + 1) // count
            assert not own or max(own) - min(own) <= 1


@pytest.mark.parametrize("D", [2, 3])
def test_several_captions_of_an_epoch_are_different_and_over_epochs_drawn_equally_often(
    D: int,
) -> None:
    counts = np.arange(300) % 8
    rows, drawn = np.arange(300) * 5, np.zeros((300, 8), np.int64)
    for epoch in range(30):
        captions = draw_captions(3, epoch, rows, counts, num_drawn=D)
        assert captions.shape == (300, D)
        has = captions >= 0
        assert (has.sum(axis=1) == np.minimum(counts, D)).all()
        np.add.at(drawn, (np.nonzero(has)[0], captions[has]), 1)
        for row, count in enumerate(counts.tolist()):
            own = captions[row][has[row]].tolist()
            assert len(set(own)) == len(own)
            assert drawn[row, count:].sum() == 0
            assert not count or np.ptp(drawn[row, :count]) <= 1


def test_captions_are_drawn_by_their_weights_and_never_by_0() -> None:
    counts = np.array([3, 2, 4, 1, 0] * 400)
    weight = np.array([1, 0.5, 0.5, 0, 0, 2, 2, 0, 2, 0.3] * 400)
    first, both = np.zeros((5, 4), np.int64), np.zeros((5, 4), np.int64)
    for epoch in range(6):
        captions = draw_captions(1, epoch, np.arange(2000), counts, num_drawn=2, weight_C=weight)
        one = draw_captions(1, epoch, np.arange(2000), counts, weight_C=weight)
        for kind in range(5):
            own, single = captions[kind::5], one[kind::5, 0]
            np.add.at(first[kind], single[single >= 0], 1)
            np.add.at(both[kind], own[own >= 0], 1)
            assert (own[:, 0] != own[:, 1]).all() or kind in (1, 4)
    # Rows of unequal weights: in proportion, anew each epoch.
    assert np.abs(first[0, :3] / 2400 - [0.5, 0.25, 0.25]).max() < 0.05
    # Of two of three the first is drawn if not left out twice: 1 - 2 x .25 x .5 / .75.
    assert abs(both[0, 0] / 2400 - (1 - 2 * 0.25 * 0.25 / 0.75)) < 0.05
    # Rows of equal weights, but for 0: drawn equally often.
    assert first[2].tolist() == [800, 800, 0, 800]
    assert both[2].tolist() == [1600, 1600, 0, 1600]
    assert first[1].sum() == first[4].sum() == both[1].sum() == 0
    assert first[3].tolist() == [2400, 0, 0, 0]


def test_weights_that_are_equal_change_no_draw() -> None:
    counts = np.arange(200) % 5
    for epoch in range(7):
        plain = draw_captions(2, epoch, np.arange(200), counts, num_drawn=2)
        weight = np.full(counts.sum(), 0.25)
        again = draw_captions(2, epoch, np.arange(200), counts, num_drawn=2, weight_C=weight)
        np.testing.assert_array_equal(again, plain)


def test_a_batch_of_two_captions_an_image_has_each_text_once() -> None:
    whole = sampler_of(captions_per_image=2, views_per_step=2)
    for step in range(4):
        plan = whole.global_batch(step)
        assert plan.caption_NC.shape == (12, 2)
        counts = CORPUS.caption_counts[plan.positions_N]
        has = plan.caption_NC >= 0
        assert (has.sum(axis=1) == np.minimum(counts, 2)).all()
        texts = plan.global_text_rows_M[plan.caption_NC[has]]
        assert texts.tolist() == plan.text_rows_NC[has].tolist()
        assert len(set(plan.global_text_rows_M.tolist())) == len(plan.global_text_rows_M)
        np.testing.assert_array_equal(plan.text_rows_NC[::2], plan.text_rows_NC[1::2])
        for i, own in zip(plan.positions_N.tolist(), plan.text_rows_NC.tolist(), strict=True):
            start, end = CORPUS.caption_start[i : i + 2]
            assert set(own) - {-1} <= set(CORPUS.caption_text_row[start:end].tolist())
        part = sampler_of(captions_per_image=2, views_per_step=2, rank=1, world_size=3)
        bounds, own_slice = part.global_batch(step).text_bounds, part.rank_slice
        seen = set(plan.text_rows_NC[: own_slice.start].ravel().tolist())
        new = [t for t in dict.fromkeys(plan.text_rows_NC[own_slice].ravel().tolist()) if t >= 0]
        expected = [t for t in new if t not in seen]
        assert plan.global_text_rows_M[bounds[1] : bounds[2]].tolist() == expected


def test_a_view_meets_other_captions_in_later_rounds() -> None:
    rows, met = np.arange(100), np.zeros((100, 4, 4), np.bool_)
    for epoch in range(40):
        views = draw_views(0, epoch, rows, num_views=4, num_drawn=1)[:, 0]
        met[rows, views, draw_captions(0, epoch, rows, np.full(100, 4))[:, 0]] = True
    assert met.mean() > 0.9  # each pair in 1 - .75**10 = .94 of the rows; .25 with one permutation


@pytest.mark.parametrize("epoch", [0, 3, 6])
def test_every_caption_is_drawn_by_as_many_rows(epoch: int) -> None:
    N, count = 20_000, 5
    drawn = draw_captions(0, epoch, np.arange(N), np.full(N, count))[:, 0]
    assert chi_square(np.bincount(drawn, minlength=count)) < 23.5  # 4 degrees: p = 1e-4
    later = draw_captions(0, epoch + count, np.arange(N), np.full(N, count))[:, 0]
    pairs = np.bincount(drawn * count + later, minlength=count**2)
    assert chi_square(pairs) < 59  # 24 degrees: p = 1e-4


def test_a_row_without_captions_draws_none() -> None:
    drawn = draw_captions(0, 0, np.arange(4), np.array([0, 1, 0, 2]))[:, 0]
    assert drawn.tolist()[:3] == [-1, 0, -1]
    assert drawn[3] in (0, 1)
    assert draw_captions(0, 5, np.arange(3), np.zeros(3, np.int64)).tolist() == [[-1]] * 3


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_views_of_a_step_differ_and_every_pair_is_as_likely(epoch: int) -> None:
    N, K = 20_000, 4
    views = draw_views(0, epoch, np.arange(N), num_views=K, num_drawn=2)
    assert (views[:, 0] != views[:, 1]).all()
    pairs = np.bincount(views[:, 0] * K + views[:, 1], minlength=K * K)
    assert chi_square(pairs[pairs > 0]) < 36  # 11 degrees: p = 1e-4
    assert np.count_nonzero(pairs) == K * (K - 1)
    all_of_them = draw_views(0, epoch, np.arange(9), num_views=K, num_drawn=K)
    assert (np.sort(all_of_them, axis=1) == np.arange(K)).all()


# -- batches


def test_an_epoch_shows_each_image_once_and_drops_the_last_short_batch() -> None:
    sampler = sampler_of()
    assert sampler.steps_per_epoch == 4
    for epoch in (0, 1):
        steps = [sampler.global_batch(4 * epoch + i) for i in range(4)]
        assert {plan.epoch for plan in steps} == {epoch}
        assert len(np.unique(np.concatenate([plan.positions_N for plan in steps]))) == 48
    assert (
        sampler.global_batch(0).positions_N.tolist() != sampler.global_batch(4).positions_N.tolist()
    )


def test_a_caption_of_a_batch_is_one_of_its_image_and_all_are_seen_in_time() -> None:
    sampler = sampler_of()
    seen: dict[int, set[int]] = {i: set() for i in range(50)}
    for step in range(160):
        plan = sampler.global_batch(step)
        for position, text in zip(
            plan.positions_N.tolist(), plan.text_rows_NC[:, 0].tolist(), strict=True
        ):
            seen[position].add(text)
    for i in range(50):
        own = CORPUS.caption_text_row[CORPUS.caption_start[i] : CORPUS.caption_start[i + 1]]
        assert seen[i] == (set(own.tolist()) or {-1})


def test_batches_of_enough_epochs_show_every_view_and_caption_once() -> None:
    corpus = corpus_of([5] * 12)
    sampler = sampler_of(corpus, views_per_step=2, global_batch_size=24)  # a step is an epoch
    batches = [sampler.global_batch(step) for step in range(5)]
    ids = np.concatenate([batch.positions_N for batch in batches])
    views = np.concatenate([batch.views_N for batch in batches])
    assert np.unique(np.stack([ids, views]), axis=1, return_counts=True)[1].tolist() == [2] * 60
    for i in range(12):
        texts = [batch.text_rows_NC[batch.positions_N == i][0] for batch in batches]
        assert sorted(texts) == corpus.caption_text_row[5 * i : 5 * i + 5].tolist()


def test_views_of_an_image_stand_together_and_share_its_caption() -> None:
    plan = sampler_of(views_per_step=3).global_batch(2)
    ids = plan.positions_N.reshape(4, 3)
    assert (ids == ids[:, :1]).all()
    assert len(np.unique(ids)) == 4
    assert all(len(set(views)) == 3 for views in plan.views_N.reshape(4, 3).tolist())
    captions = plan.caption_NC.reshape(4, 3)
    assert (captions == captions[:, :1]).all()


def test_each_text_stands_once_in_order_of_appearance() -> None:
    for step in range(8):
        plan = sampler_of().global_batch(step)
        drawn = [text for text in plan.text_rows_NC[:, 0].tolist() if text >= 0]
        assert plan.global_text_rows_M.tolist() == list(dict.fromkeys(drawn))
        has = plan.caption_NC >= 0
        assert (has == (plan.text_rows_NC >= 0)).all()
        assert plan.global_text_rows_M[plan.caption_NC[has]].tolist() == drawn


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 12])
def test_a_rank_owns_the_texts_that_its_images_show_first(world_size: int) -> None:
    whole = sampler_of().global_batch(1)
    before: set[int] = set()
    shown: list[int] = []
    for rank in range(world_size):
        sampler = sampler_of(rank=rank, world_size=world_size)
        plan = sampler.global_batch(1)
        for name in ("positions_N", "views_N", "text_rows_NC"):
            np.testing.assert_array_equal(getattr(plan, name), getattr(whole, name))
        shown += plan.positions_N[sampler.rank_slice].tolist()
        texts = [t for t in plan.text_rows_NC[sampler.rank_slice, 0].tolist() if t >= 0]
        first, last = plan.text_bounds[rank : rank + 2]
        own = plan.global_text_rows_M[first:last].tolist()
        assert own == [t for t in dict.fromkeys(texts) if t not in before]
        before |= set(texts)
    assert shown == whole.positions_N.tolist()
    assert plan.text_bounds[[0, -1]].tolist() == [0, len(whole.global_text_rows_M)]


def test_a_batch_without_any_caption_has_no_text() -> None:
    plan = sampler_of(corpus_of([0] * 12), world_size=2).global_batch(0)
    assert len(plan.global_text_rows_M) == 0
    assert set(plan.caption_NC[:, 0].tolist()) == {-1}
    assert plan.text_bounds.tolist() == [0, 0, 0]


def test_any_step_can_be_planned_at_once() -> None:
    through = sampler_of(views_per_step=2)
    plans = [through.global_batch(step) for step in range(20)]
    for step in (19, 3, 11, 0):
        assert_same(sampler_of(views_per_step=2).global_batch(step), plans[step])
    assert through.global_batch(5).step == 5


def test_another_seed_draws_others() -> None:
    a, b = sampler_of(seed=0).global_batch(0), sampler_of(seed=1).global_batch(0)
    assert a.positions_N.tolist() != b.positions_N.tolist()


# -- images that are read together

GROUPS = np.array([i // 10 if i < 300 else -1 for i in range(400)])[
    np.random.default_rng(0).permutation(400)
]


def groups_of(*, in_order: bool = False, num_open: int = 8) -> ReadGroups:
    return ReadGroups(number_I=GROUPS, num_open=num_open, in_order=in_order)


def open_at_a_time(order: NDArray[np.int64]) -> int:
    """Most groups that are begun and not finished."""
    turns = [group for group in GROUPS[order].tolist() if group >= 0]
    ends = {group: i for i, group in enumerate(turns)}
    begun: set[int] = set()
    most = 0
    for i, group in enumerate(turns):
        begun.add(group)
        most = max(most, len(begun))
        begun -= {group for group in begun if ends[group] <= i}
    return most


@pytest.mark.parametrize("in_order", [True, False])
def test_images_of_groups_come_a_few_groups_at_a_time(in_order: bool) -> None:
    orders = [epoch_order(400, groups_of(in_order=in_order), 0, epoch)[0] for epoch in range(2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(400))
        assert open_at_a_time(order) == 8
        own = [order[GROUPS[order] == group] for group in range(30)]
        assert all((np.diff(each) > 0).all() for each in own) == in_order
    assert open_at_a_time(epoch_order(400, None, 0, 0)[0]) > 20


@pytest.mark.parametrize("in_order", [True, False])
def test_groups_are_mixed_and_other_images_stand_anywhere(in_order: bool) -> None:
    orders = [epoch_order(400, groups_of(in_order=in_order), 0, epoch)[0] for epoch in range(2)]
    turns = [[g for g in GROUPS[order].tolist() if g >= 0] for order in orders]
    assert turns[0][:80] != turns[1][:80]
    same_in_a_row = sum(a == b for a, b in zip(turns[0], turns[0][1:], strict=False))
    assert same_in_a_row < 80  # one in eight by chance; 270 one group after the other
    elsewhere = np.flatnonzero(GROUPS[orders[0]] < 0)
    assert chi_square(np.histogram(elsewhere, 4, (0, 400))[0]) < 21.2  # 3 degrees: p = 1e-4


@pytest.mark.parametrize("in_order", [True, False])
def test_a_batch_has_the_drawn_images_with_those_of_a_group_together(in_order: bool) -> None:
    corpus, groups = corpus_of([1] * 400), groups_of(in_order=in_order)
    settings: dict[str, Any] = {"global_batch_size": 40, "groups": groups}
    order, _ = epoch_order(400, groups, 3, 0)
    for step in range(10):
        batch = sampler_of(corpus, **settings).global_batch(step)
        assert set(batch.positions_N) == set(order[40 * step : 40 * step + 40])
        turns = [group for group in GROUPS[batch.positions_N].tolist() if group >= 0]
        num_turns = 1 + sum(a != b for a, b in pairwise(turns))
        # In order a group is finished before the next; else a lane may go on with another one.
        assert num_turns <= len(set(turns)) + (0 if in_order else 8)
        halves = [
            sampler_of(corpus, rank=rank, world_size=2, **settings).global_batch(step)
            for rank in range(2)
        ]
        assert_same(replace_bounds(halves[0], batch), batch)
        assert_same(replace_bounds(halves[1], batch), batch)


def replace_bounds(part: GlobalBatch, whole: GlobalBatch) -> GlobalBatch:
    """The texts are divided among more ranks; all else must be equal."""
    return replace(part, text_bounds=whole.text_bounds)


def test_few_groups_are_read_by_more_than_one_rank() -> None:
    number_I = np.arange(32_000) // 100
    groups = ReadGroups(number_I=number_I, num_open=32, in_order=False)
    corpus = corpus_of([0] * 32_000)
    ranks = [
        Sampler(corpus, global_batch_size=512, groups=groups, rank=rank, world_size=4)
        for rank in range(4)
    ]
    readers = np.zeros((4, 320), np.bool_)
    for step in range(ranks[0].steps_per_epoch):
        for rank, sampler in enumerate(ranks):
            own = sampler.global_batch(step).positions_N[sampler.rank_slice]
            readers[rank, number_I[own]] = True
            assert len(np.unique(number_I[own])) <= 2 * sampler.open_groups
    assert readers.sum() < 1.8 * 320  # 4 times if each rank read all


# -- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views_per_step": 6}, "views_per_step must be 1 to 5, .* got 6"),
        ({"views_per_step": 0}, "views_per_step must be 1 to 5, .* got 0"),
        (
            {"world_size": 5},
            r"global_batch_size must be a multiple of 5 \(5 processes x 1 views per step\), got 12",
        ),
        ({"views_per_step": 3, "world_size": 8}, "multiple of 24 .*, got 12"),
        ({"global_batch_size": 0}, "multiple of 1 .*, got 0"),
        (
            {"global_batch_size": 3 * 9, "super_batch": 3, "views_per_step": 2, "world_size": 3},
            r"multiple of 2 \(3 processes x 2 views per step, super_batch 3\), got 9$",
        ),
        ({"seed": -1}, "seed must be 0 to 9223372036854775807, got -1"),
        (
            {"global_batch_size": 51},
            "a batch takes 51 images, but there are 50 to train on; .* 51 may be at most 50",
        ),
        (
            {"global_batch_size": 102, "views_per_step": 2, "world_size": 3},
            r"takes 51 images \(2 views of each image\), but there are 50 .* 102 may be at most 96",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        sampler_of(**settings)
