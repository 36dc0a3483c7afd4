"""Weights of a smaller student: by hand, and against the larger model with parts taken out."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from siglip2_cache import siglip
from siglip2_cache.student.smaller import weights as cuts

PATCHES = "vision_model.embeddings.patch_embedding.weight"
POSITIONS = "vision_model.embeddings.position_embedding.weight"


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    checkpoint = siglip.resolve_checkpoint(str(tiny_checkpoint))
    return siglip.load_model(checkpoint, device="cpu", compute_dtype="float32")


@pytest.mark.parametrize(
    ("num_kept", "num_all", "expected"),
    [(1, 12, [0]), (2, 12, [0, 11]), (4, 12, [0, 4, 7, 11]), (12, 12, list(range(12)))],
)
def test_layers_are_spread_evenly(num_kept: int, num_all: int, expected: list[int]) -> None:
    assert cuts.evenly(num_kept, num_all) == expected


def test_a_tower_without_its_first_layer_is_the_model_without_it(model: Any) -> None:
    shorter = copy.deepcopy(model)
    del shorter.vision_model.encoder.layers[0]
    found = cuts.keep_layers(model.state_dict(), "vision_model", [1])
    expected = shorter.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("patch_size", [16, 24, 32])
def test_a_resized_patch_gives_the_same_as_the_patch_before(patch_size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    kernel = torch.randn(5, 3, 16, 16, generator=draw)
    patch = torch.randn(1, 3, 16, 16, generator=draw)
    size = (patch_size, patch_size)
    larger = interpolate(patch, size, mode="bilinear", antialias=True)
    found = cuts.resize_patches({PATCHES: kernel}, patch_size)[PATCHES]
    assert found.shape == (5, 3, *size)
    torch.testing.assert_close(
        torch.einsum("dcpq,bcpq->bd", found, larger),
        torch.einsum("dcpq,bcpq->bd", kernel, patch),
        atol=1e-3,
        rtol=1e-4,
    )


def test_positions_keep_their_places_in_another_grid() -> None:
    """Values that rise by 1 a row and by 10 a column still do, between the middles of the outer patches."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    stored = (rows + 10 * columns).flatten()[:, None]  # (16, 1)
    found = cuts.resize_positions({POSITIONS: stored}, 2)[POSITIONS].view(2, 2)
    # Each half of the width is the mean of the triangle filter over four columns, folded at the border.
    assert found[1, 0] - found[0, 0] == pytest.approx(found[1, 1] - found[0, 1])
    assert found[0, 1] - found[0, 0] == pytest.approx(10 * (found[1, 0] - found[0, 0]).item())
    assert found.mean() == pytest.approx(stored.mean().item())
    same = cuts.resize_positions({POSITIONS: stored}, 4)[POSITIONS]
    torch.testing.assert_close(same, stored)


def test_all_of_the_width_is_the_same_model(model: Any) -> None:
    heads, mlp = {"text_model": 4, "vision_model": 4}, {"text_model": 128, "vision_model": 128}
    found = cuts.narrow(model.state_dict(), width=64, num_heads=heads, mlp=mlp)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_half_the_width_keeps_whole_heads_and_every_so_many_values(model: Any) -> None:
    heads, mlp = {"text_model": 4, "vision_model": 4}, {"text_model": 64, "vision_model": 64}
    whole = model.state_dict()
    found = cuts.narrow(whole, width=32, num_heads=heads, mlp=mlp)
    stream = torch.tensor(cuts.evenly(32, 64))
    inner = torch.cat([torch.arange(16), torch.arange(48, 64)])  # heads 0 and 3 of 16 values
    layer = "text_model.encoder.layers.1"
    name = f"{layer}.self_attn.k_proj.weight"
    assert torch.equal(found[name], whole[name][inner][:, stream])
    name = f"{layer}.self_attn.out_proj.weight"
    assert torch.equal(found[name], whole[name][stream][:, inner])
    name = "vision_model.head.attention.in_proj_bias"
    three = torch.cat([inner, inner + 64, inner + 128])
    assert torch.equal(found[name], whole[name][three])
    name = "vision_model.head.probe"
    assert torch.equal(found[name], whole[name][:, :, stream])
    assert found[f"{layer}.mlp.fc2.weight"].shape == (32, 64)
    assert found["text_model.head.weight"].shape == (32, 32)
    assert torch.equal(found["logit_bias"], whole["logit_bias"])
