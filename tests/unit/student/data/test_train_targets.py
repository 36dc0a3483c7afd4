"""Targets of a training as torch tensors: int8 rows restored as the store restores them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from siglip2_cache.store.format.row_encoding import Int8Codec, make_rotation
from siglip2_cache.student.data.train_targets import read_targets


@dataclass
class Int8Targets:
    """As store.targets.Targets, in memory."""

    stored_NS: NDArray[np.int8]
    codec: Int8Codec

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.stored_NS), self.stored_NS.shape[1] - 4

    @property
    def rotation(self) -> NDArray[np.float32]:
        return self.codec.rotation

    def read_rows(self, rows: NDArray[np.int64], views: None = None) -> NDArray[np.int8]:
        return self.stored_NS[rows]


# Hadamard's matrix; with an odd factor, dense; one block as wide as the row.
@pytest.mark.parametrize("embed_dim", [64, 72, 40])
def test_int8_rows_are_restored_as_by_the_store(embed_dim: int) -> None:
    rng = np.random.default_rng(0)
    values_NE = rng.normal(size=(700, embed_dim))
    values_NE[:, 3] += 9  # a dimension that has most of the norm
    values_NE /= np.linalg.norm(values_NE, axis=1, keepdims=True)
    codec = Int8Codec(make_rotation(embed_dim))
    targets: Any = Int8Targets(codec.encode(values_NE.astype(np.float16)), codec)
    rows = rng.permutation(700)[:600]  # two tiles and a part
    found = read_targets(targets, rows)
    assert found.dtype == torch.float16
    expected = codec.decode(targets.stored_NS[rows])
    ulp = np.spacing(np.abs(expected)).astype(np.float32)
    steps = np.abs(found.numpy().astype(np.float32) - expected.astype(np.float32)) / ulp
    assert steps.max() <= 1  # where a value is in the middle of two
    assert np.count_nonzero(steps) < 0.002 * steps.size
    assert len(read_targets(targets, rows[:0])) == 0
