"""Patch tokens pooled to cells: the grids, the means, and the hidden states that the pooling head gets."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from siglip2_cache.siglip import (
    PatchPooling,
    cell_grid,
    embed_image_patches,
    embed_image_pixels,
    encode_images,
    load_model,
    pool_tokens,
    resolve_checkpoint,
    vision_tower,
)
from siglip2_cache.siglip.patch_cells import pooling_matrix

SIDES = st.integers(1, 80)


@given(SIDES, SIDES, st.integers(1, 16))
def test_a_grid_has_at_most_so_many_cells_and_nearly_the_aspect_of_the_view(
    rows: int, columns: int, grid: int
) -> None:
    high, wide = cell_grid(rows, columns, grid)
    assert 1 <= high <= rows
    assert 1 <= wide <= columns
    assert high * wide <= grid * grid
    if rows * columns <= grid * grid:
        assert (high, wide) == (rows, columns)
    elif min(high, wide) >= 4 and high < rows and wide < columns:
        assert abs(math.log(high / wide) - math.log(rows / columns)) < 0.45


def test_grids_of_usual_views() -> None:
    assert cell_grid(14, 14, 7) == cell_grid(16, 16, 7) == cell_grid(27, 27, 7) == (7, 7)
    assert (cell_grid(14, 18, 7), cell_grid(1, 256, 7), cell_grid(256, 1, 7)) == (
        (6, 8),
        (1, 49),
        (49, 1),
    )


@pytest.mark.parametrize(
    ("patches", "cells"),
    [((14, 14), (7, 7)), ((16, 16), (7, 7)), ((6, 9), (4, 9)), ((2, 3), (5, 4))],
)
def test_cells_are_the_means_of_adaptive_pooling(
    patches: tuple[int, int], cells: tuple[int, int]
) -> None:
    tokens_BND = torch.randn(2, math.prod(patches) + 1, 5, dtype=torch.float64)
    num_cells = math.prod(cells) + 2
    found_BCD = pool_tokens(tokens_BND, [patches] * 2, [cells] * 2, num_cells)
    image = tokens_BND[:, :-1].transpose(1, 2).reshape(2, 5, *patches)
    expected = torch.nn.functional.adaptive_avg_pool2d(image, cells).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found_BCD[:, :-2], expected, rtol=0, atol=1e-6)
    assert not found_BCD[:, -2:].any()
    np.testing.assert_allclose(pooling_matrix(patches, cells).sum(axis=1), 1, rtol=1e-6)


def test_views_of_different_grids_ignore_their_padding_and_let_gradients_through() -> None:
    tokens_BND = torch.randn(3, 12, 4, requires_grad=True)
    grids, cells = [(3, 4), (2, 2), (1, 5)], [(2, 2), (2, 1), (1, 3)]
    found_BCD = pool_tokens(tokens_BND, grids, cells, 4)
    for i, (grid, of_view) in enumerate(zip(grids, cells, strict=True)):
        alone = pool_tokens(
            tokens_BND[i : i + 1, : math.prod(grid)], [grid], [of_view], math.prod(of_view)
        )
        torch.testing.assert_close(found_BCD[i, : math.prod(of_view)], alone[0])
        assert not found_BCD[i, math.prod(of_view) :].any()
    found_BCD.sum().backward()
    assert tokens_BND.grad is not None
    assert tokens_BND.grad[1, :4].all()
    assert not tokens_BND.grad[1, 4:].any()


def test_tokens_are_what_the_pooling_head_gets(tiny_checkpoint: Path) -> None:
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    model = load_model(checkpoint, device="cpu", compute_dtype="float32")
    tower = vision_tower(model)
    pixels = torch.randint(0, 256, (2, *checkpoint.image.view_shape), dtype=torch.uint8)
    with torch.no_grad():
        encoded = encode_images(tower, checkpoint, pixels, None)
        torch.testing.assert_close(tower.head(encoded.tokens_BND), encoded.pooled_BD)
    side = math.isqrt(encoded.tokens_BND.shape[1])
    assert encoded.grids == [(side, side)] * 2
    basis_PD = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 5)))[0].T.astype(np.float32)
    rows = embed_image_pixels(
        model, checkpoint, pixels, compute_dtype="float32", patches=PatchPooling(2, basis_PD)
    )
    plain = embed_image_pixels(model, checkpoint, pixels, compute_dtype="float32")
    torch.testing.assert_close(rows[:, :64], plain)
    image = encoded.tokens_BND.transpose(1, 2).reshape(2, 64, side, side)
    cells = torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(2).transpose(1, 2)
    expected = cells @ torch.from_numpy(basis_PD).T
    torch.testing.assert_close(rows[:, 64:-2].reshape(2, 4, 5), expected, rtol=1e-4, atol=1e-4)
    assert rows[:, -2:].tolist() == [[2, 2], [2, 2]]


def test_naflex_views_have_cells_of_their_own_whatever_the_padding(
    naflex_checkpoint: Path,
) -> None:
    checkpoint = resolve_checkpoint(str(naflex_checkpoint))
    model = load_model(checkpoint, device="cpu", compute_dtype="float32")
    grids = [(6, 4), (2, 3), (3, 8)]
    patches = torch.randint(0, 256, (3, 24, 16 * 16 * 3), dtype=torch.uint8)
    num_patches = torch.tensor([24, 6, 24])
    mask = torch.arange(24) < num_patches[:, None]
    pooling = PatchPooling(3, None)
    rows = embed_image_patches(
        model, checkpoint, patches, grids, mask, compute_dtype="float32", patches=pooling
    )
    assert rows[:, -2:].tolist() == [[4, 2], [2, 3], [2, 4]]
    alone = embed_image_patches(
        model,
        checkpoint,
        patches[1:2, :6],
        [(2, 3)],
        None,
        compute_dtype="float32",
        patches=pooling,
    )
    torch.testing.assert_close(rows[1:2], alone, rtol=1e-4, atol=1e-4)
    cells = rows[1, checkpoint.embed_dim : -2].reshape(9, -1)
    assert cells[:6].abs().amin() > 0
    assert not cells[6:].any()
