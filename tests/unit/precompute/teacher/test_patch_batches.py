"""Which NaFlex views share a forward pass."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from siglip2_cache.precompute.teacher.patch_batches import group_by_patches


def test_full_passes_of_one_count_come_first_and_the_rest_is_put_together_by_nearness() -> None:
    counts = np.array([252, 247, 0, 252, 49, 252, 247, 256, 252, 252])
    found = [views.tolist() for views in group_by_patches(counts, 2)]
    # 247: 1 and 6; 252: 0 and 3, 5 and 8; left over: 49, the fifth 252, 256
    assert found == [[1, 6], [0, 3], [5, 8], [4, 9], [7]]


def test_no_view_no_pass() -> None:
    assert group_by_patches(np.zeros(3, np.int64), 2) == []
    assert group_by_patches(np.empty(0, np.int64), 2) == []


@given(
    counts=st.lists(st.integers(0, 12), max_size=60).map(lambda found: np.array(found, np.int64)),
    size=st.integers(1, 9),
)
def test_every_view_goes_through_once_in_as_few_passes_as_can_be(
    counts: np.ndarray, size: int
) -> None:
    passes = group_by_patches(counts, size)
    views = np.concatenate(passes) if passes else np.empty(0, np.int64)
    assert sorted(views.tolist()) == np.flatnonzero(counts).tolist()
    assert len(passes) == -(-len(views) // size)
    assert all(len(each) == size for each in passes[:-1])
    for count in range(1, 13):
        whole = [each for each in passes if len(each) == size and (counts[each] == count).all()]
        assert len(whole) >= (counts == count).sum() // size
    again = group_by_patches(counts.copy(), size)
    assert [each.tolist() for each in again] == [each.tolist() for each in passes]
